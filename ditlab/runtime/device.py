"""The device a process computes on, its memory, and the compiler that torch.compile needs."""

from __future__ import annotations

import ctypes
import os
import platform
import re
import shutil
import warnings
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TYPE_CHECKING

from ditlab.errors import UserError, nearest

if TYPE_CHECKING:  # the command line configures the allocator before torch is imported
    import torch

    from ditlab.runtime.distributed import Processes

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of mallopt(3)
NEVER = 2**31 - 1  # bytes: more than is ever free at the end of the heap
DEVICES = ("cpu", "cuda", "cuda:1", "mps")  # examples of each kind
DEVICE = re.compile(r"(cpu|mps|cuda)(?:(?<=cuda):(\d+))?")
MAPPED = 2**30  # bytes from which an allocation is a mapping of its own, returned to the system when it is freed


def keep_memory() -> None:
    """Make glibc keep freed memory; call it at the start of a process. Does nothing with another C library.

    A network on a CPU frees and allocates its activations with every batch. By default glibc returns blocks this large to
    the system, which zeroes every page when it is allocated again: half of the time of a convolutional network.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # another C library or system
        return
    mallopt(M_TRIM_THRESHOLD, NEVER)
    mallopt(M_MMAP_THRESHOLD, MAPPED)


def default_device(processes: Processes | None = None) -> torch.device:
    """The GPU of this process, or the CPU if there is none."""
    import torch

    local = 0 if processes is None else processes.local
    return torch.device("cuda", local) if torch.cuda.is_available() else torch.device("cpu")


def select_device(name: str = "", processes: Processes | None = None) -> torch.device:
    """The device ``name``: cpu, cuda, cuda:1, mps; empty or cuda is the GPU of this process, empty the CPU if there is none.

    Raises UserError for an unknown name, or a device that this machine, or PyTorch's build, does not have.
    """
    import torch

    if not name:
        return default_device(processes)
    match = DEVICE.fullmatch(name)
    if not match:
        raise UserError(f"--device {name!r} is not a device; {nearest(name, DEVICES)}")
    count = torch.cuda.device_count()
    found = ", ".join(["cpu", *(f"cuda:{k}" for k in range(count)), *["mps"] * torch.backends.mps.is_available()])
    kind, index = match[1], match[2]
    size, local = (1, 0) if processes is None else (processes.size, processes.local)
    if kind != "cpu" and (kind not in found or int(index or 0) >= max(count, 1)):
        cause = "" if torch.version.cuda or kind == "mps" else "; this PyTorch was built without CUDA"
        raise UserError(f"--device {name} is not available here; found: {found}{cause}")
    if size > 1 and (index or kind == "mps"):
        raise UserError(f"--device {name} is one device, and there are {size} processes; give --device cuda or cpu")
    if kind != "cuda":
        return torch.device(kind)
    device = torch.device("cuda", int(index) if index else local)
    torch.cuda.set_device(device)  # else tensors without a named device would be on GPU 0
    return device


def thread_pool(device: torch.device, name: str) -> ThreadPoolExecutor:
    """One worker thread that uses ``device``: a new thread starts with GPU 0 current, and would make a context there."""
    import torch

    def start() -> None:
        if device.type == "cuda":
            torch.cuda.set_device(device)

    return ThreadPoolExecutor(1, name, initializer=start)


def cpu_has_bf16() -> bool:
    """Whether this CPU has instructions for bfloat16; x86 CPUs without emulate it, and take about 13 times as long as fp32."""
    import torch

    if platform.machine() not in ("x86_64", "AMD64"):
        return True
    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()


@contextmanager
def matmul_precision(tf32: bool) -> Iterator[None]:
    """Compute float32 matrix products in TF32 or in full float32 within the context.

    torch.compile reads these settings and raises an error for those of the newer interface, ``fp32_precision``.
    """
    import torch

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Please use the new API settings to control TF32")  # from PyTorch 2.9
        before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
        torch.set_float32_matmul_precision("high" if tf32 else "highest")
        torch.backends.cudnn.allow_tf32 = tf32
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before[0])
        torch.backends.cudnn.allow_tf32 = before[1]


def check_compiler(device: torch.device, without: str) -> None:
    """Check for the compiler that torch.compile needs: C++ for a CPU; C for a GPU, where Triton builds kernel launchers.

    Raises a UserError that advises ``without``, the flag that turns compilation off, if no compiler is found.
    """
    variable, known = ("CXX", ("g++", "clang++")) if device.type == "cpu" else ("CC", ("gcc", "clang", "cc"))
    if not any(shutil.which(name) for name in (os.environ.get(variable, known[0]), *known)):
        names = f"{', '.join(known[:-1])} or {known[-1]}"
        raise UserError(f"torch.compile needs a compiler, and there is no {names} on this machine; use {without}")
