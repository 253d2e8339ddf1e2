"""The device a process computes on, its memory, and the compiler that torch.compile needs."""

from __future__ import annotations

import ctypes
import os
import shutil
from typing import TYPE_CHECKING

from ditlab.errors import UserError

if TYPE_CHECKING:  # the command line sets the allocator before torch is imported
    import torch

    from ditlab.runtime.distributed import Processes

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of mallopt(3)
NEVER = 2**31 - 1  # bytes: more than is ever free at the end
MAPPED = 2**30  # bytes from which an allocation is a mapping of its own, which the system takes back when it is freed


def keep_memory() -> None:
    """Tell the C library to keep what is freed; to be called where a process begins. Does nothing where it cannot be told.

    A network on a CPU frees its maps and asks for them again with every batch. glibc hands blocks this large back to the
    system, which gives each page anew, filled with zeros: half the time of a convolutional network goes there.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # another C library, or another system
        return
    mallopt(M_TRIM_THRESHOLD, NEVER)
    mallopt(M_MMAP_THRESHOLD, MAPPED)


def default_device(processes: Processes | None = None) -> torch.device:
    """The GPU of this process, or the CPU where there is no GPU."""
    import torch

    local = 0 if processes is None else processes.local
    return torch.device("cuda", local) if torch.cuda.is_available() else torch.device("cpu")


def check_compiler(device: torch.device, without: str) -> None:
    """Look for the compiler that torch.compile calls: of C++ for a CPU, of C for a GPU, whose kernels Triton starts with it.

    Args:
        device: where the network is to run.
        without: the flag that does without, for the message.

    Raises:
        UserError: there is none.
    """
    variable, known = ("CXX", ("g++", "clang++")) if device.type == "cpu" else ("CC", ("gcc", "clang", "cc"))
    if not any(shutil.which(name) for name in (os.environ.get(variable, known[0]), *known)):
        names = f"{', '.join(known[:-1])} or {known[-1]}"
        raise UserError(f"torch.compile needs a compiler, and there is no {names} on this machine; use {without}")
