"""How many images fit in memory at a time."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ditlab.diffusion import Positions
from ditlab.runtime.distributed import Processes
from ditlab.train.config import TrainConfig
from ditlab.train.task import Task

STATE = 16  # bytes a parameter of gradient, two moments and average
MEMINFO = Path("/proc/meminfo")
MARGIN = 0.8  # share of the free memory for activations
PROBES = (2, 4)  # images of the probes


def free_memory(device: torch.device, processes: Processes) -> float:
    """Bytes this process may still take: of its GPU, or its share of the machine's."""
    if device.type == "cuda":
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + unused
    if not MEMINFO.exists():  # macOS
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / processes.size
    lines = dict(line.split(":") for line in MEMINFO.read_text().splitlines())
    return int(lines["MemAvailable"].split()[0]) * 1024 / processes.size


def saved_bytes(task: Task, config: TrainConfig, device: torch.device, count: int) -> int:
    """Bytes that a forward pass of ``count`` images keeps for the backward pass, with compiled parts if they will be."""
    draws = task.draw(Positions(0, 0, count))
    batch = task.read(np.arange(count) % task.count, np.zeros(count, bool), draws)
    kept: dict[int, torch.UntypedStorage] = {}  # held, so that no address comes twice

    def keep(tensor: Tensor) -> Tensor:
        kept.setdefault(tensor.untyped_storage().data_ptr(), tensor.untyped_storage())
        return tensor

    moved = [{name: value.to(device) for name, value in tensors.items()} for tensors in (batch, draws)]
    compiled = _partitioned(task.parts(task.module)) if config.compiles_on(device) else nullcontext()
    with compiled, config.autocast(device):
        if config.compiles_on(device):
            task.loss(task.module, *moved)  # compiles
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            task.loss(task.module, *moved)
    parameters = {parameter.data_ptr() for parameter in task.module.parameters()}
    return sum(storage.nbytes() for address, storage in kept.items() if address not in parameters)


@contextmanager
def _partitioned(parts: list[nn.Module]) -> Iterator[None]:
    """Compile parts up to the choice of what is kept, which is the compiler's own; no code is generated, which takes longer."""
    for part in parts:
        part.compile(backend="aot_eager_decomp_partition", dynamic=False)
    try:
        yield
    finally:
        for part in parts:
            part._compiled_call_impl = None
        torch._dynamo.reset()


def largest_microbatch(task: Task, config: TrainConfig, device: torch.device, processes: Processes) -> int:
    """The most images, of the divisors of this process's share of a batch, whose activations fit in memory.

    Two small forward passes give the bytes an image keeps for the backward pass; gradients, moments and average, not
    allocated yet, are subtracted from the free memory. With activation checkpointing one part holds all of its activations
    at a time: the blocks of a DiT are equal, of a U-Net the mean is taken.
    """
    share = config.batch // processes.size
    if share == 1:
        return 1

    def of_an_image() -> int:
        few, more = (saved_bytes(task, config, device, count) for count in PROBES)
        return (more - few) // (PROBES[1] - PROBES[0])

    image = of_an_image()
    if config.activation_checkpointing:
        task.activation_checkpointing(False)
        image += (of_an_image() - image) // max(len(task.parts(task.module)), 1)
        task.activation_checkpointing()
    state = STATE * sum(parameter.numel() for parameter in task.module.parameters())
    room = free_memory(device, processes) - state / (processes.size if config.parallel == "fsdp" else 1)
    fit = max(1, int(MARGIN * room / max(image, 1)))
    return max(divisor for divisor in range(1, share + 1) if share % divisor == 0 and divisor <= fit)


def memory_settings(config: TrainConfig, processes: Processes, device: torch.device) -> str:
    """What decides which microbatch fits, as text."""
    memory = torch.cuda.get_device_properties(device).total_memory if device.type == "cuda" else 0
    return (
        f"{processes.size} processes, {config.parallel}, {config.precision_on(device)}, compiled {config.compiles_on(device)}, "
        f"activation checkpointing {config.activation_checkpointing}, {device.type} {memory >> 30} GiB"
    )


def stored_microbatch(
    state: dict[str, Any] | None, config: TrainConfig, processes: Processes, device: torch.device
) -> int:
    """The microbatch to use: given, or found by an earlier start with the same settings; 0 if it is to be found."""
    found, settings = (state or {}).get("microbatch", [0, ""])
    return config.microbatch or (found if settings == memory_settings(config, processes, device) else 0)
