"""How fast training is against what the machine can do, what memory it takes, and how many images fit at a time."""

from __future__ import annotations

import resource
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch

from ditlab.runtime.distributed import Processes
from ditlab.train.config import TrainConfig
from ditlab.train.prefetch import step_generator
from ditlab.train.tasks import Task

GIB = 2**30
STATE = 16  # bytes a parameter of gradient, two moments and average
MARGIN = 0.8  # of the free memory that activations may take


def matrix_rate(device: torch.device, precision: str) -> float:
    """Floating-point operations a second of a large matrix product in ``precision`` (fp32 or bf16): the machine's best.

    What a utilisation is measured against: 2 * side ** 3 operations each, the median of seven.
    """
    side = 8192 if device.type == "cuda" else 1024
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    a, b = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    seconds = []
    for _ in range(9):
        _wait(device)
        began = time.perf_counter()
        torch.mm(a, b)
        _wait(device)
        seconds.append(time.perf_counter() - began)
    return 2 * side**3 / float(np.median(seconds[2:]))


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def peak_memory(device: torch.device) -> float:
    """GiB this process has held at most: of the GPU's memory, or of the machine's where there is none."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / GIB
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def free_memory(device: torch.device, processes: Processes) -> float:
    """Bytes this process may still take: of its GPU, or its share of the machine's."""
    if device.type == "cuda":
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + unused
    lines = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
    return int(lines["MemAvailable"].split()[0]) * 1024 / processes.size


def saved_bytes(objective: Task, config: TrainConfig, device: torch.device, count: int) -> int:
    """Bytes that a forward pass over ``count`` images keeps for the backward pass."""
    generator = step_generator(0, 0)
    batch = objective.read(np.arange(count) % objective.count, np.zeros(count, bool))
    draws = objective.draw(generator, count)
    kept: dict[int, int] = {parameter.data_ptr(): 0 for parameter in objective.module.parameters()}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        kept.setdefault(storage.data_ptr(), storage.nbytes())
        alive.append(storage)  # as the graph does: a freed address would be counted once for two
        return tensor

    alive: list[torch.UntypedStorage] = []
    moved = [{name: value.to(device) for name, value in tensors.items()} for tensors in (batch, draws)]
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor), config.autocast(device):
        losses = objective.losses(*moved)
    del losses
    return sum(kept.values())


def microbatch_that_fits(objective: Task, config: TrainConfig, device: torch.device, processes: Processes) -> int:
    """The most images, of those that divide this process's share of a batch, whose activations fit in memory.

    What one and two images keep for the backward pass gives the bytes an image takes; gradients, moments and average, which
    are not there yet, take theirs first. Where blocks are computed again going back, one of them has all it computes: the
    blocks of a DiT are alike, of a U-Net it is a mean one.
    """
    share = config.batch // processes.size
    if share == 1:
        return 1

    def of_an_image() -> int:
        one, two = (saved_bytes(objective, config, device, count) for count in (1, 2))
        return two - one

    image = of_an_image()
    if config.activation_checkpointing:
        objective.recompute(False)
        image += (of_an_image() - image) // max(len(objective.parts(objective.module)), 1)
        objective.recompute()
    state = STATE * sum(parameter.numel() for parameter in objective.module.parameters())
    room = free_memory(device, processes) - state / (processes.size if config.parallel == "fsdp" else 1)
    fit = max(1, int(MARGIN * room / max(image, 1)))
    return max(part for part in range(1, share + 1) if share % part == 0 and part <= fit)


class Speed:
    """Images a second of this session, without its pauses, and what that is of the machine's best.

    Attributes:
        loss: to show beside, where there is one.
    """

    def __init__(self, precision: str, operations: float, device: torch.device, processes: Processes):
        self.operations, self.device, self.processes = operations, device, processes
        self.best = matrix_rate(device, precision) * processes.size if operations else 0.0
        self.loss: float | None = None
        self._images, self._paused = 0, 0.0
        self._began = self._said = time.perf_counter()

    def start(self) -> None:
        """The first step begins."""
        self._began = self._said = time.perf_counter()

    def add(self, images: int) -> None:
        """Images are done."""
        self._images += images

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Time that is not training."""
        _wait(self.device)  # what a GPU was told to do before is training still
        began = time.perf_counter()
        yield
        self._paused += time.perf_counter() - began

    @property
    def seconds(self) -> float:
        """Time spent training."""
        return max(time.perf_counter() - self._began - self._paused, 1e-9)

    @property
    def images_per_second(self) -> float:
        """Over all processes."""
        return self._images / self.seconds

    @property
    def utilisation(self) -> float:
        """Model FLOPs utilisation: operations the network needs (6 a multiply-accumulate and image) over those possible."""
        return self.images_per_second * self.operations / self.best if self.best else 0.0

    @property
    def line(self) -> str:
        """For the progress bar."""
        used = f", {self.utilisation:.0%} MFU" if self.best else ""
        loss = f", loss {self.loss:.4f}" if self.loss is not None else ""
        return f"{self.images_per_second:,.0f} images/s{used}, {peak_memory(self.device):.1f} GiB{loss}"

    def row(self) -> dict[str, float]:
        """For metrics.jsonl: what the clock and the machine say."""
        row = {"images_per_second": round(self.images_per_second, 1), "seconds": round(self.seconds, 2)}
        row["memory_gib"] = round(peak_memory(self.device), 3)
        return row | ({"mfu": round(self.utilisation, 4)} if self.best else {})

    def quiet_for(self, seconds: float) -> bool:
        """Whether that long passed since this was last true."""
        if time.perf_counter() - self._said < seconds:
            return False
        self._said = time.perf_counter()
        return True
