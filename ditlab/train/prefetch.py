"""Batches read in the background while the steps before them compute."""

from __future__ import annotations

from concurrent.futures import Future

import torch
from torch import Tensor

from ditlab.data import DataOrder
from ditlab.diffusion import Positions
from ditlab.runtime.device import thread_pool
from ditlab.runtime.distributed import Processes
from ditlab.train.task import Batch, Task

AHEAD = 2  # steps read in advance


class Prefetcher:
    """This process's share of every step's images and draws, read by one thread.

    Step k trains on images k * batch .. (k + 1) * batch of the order, of which each process reads and draws its own slice; a
    draw depends on the position alone, so the run is the same on any number of processes. ``batch`` is that of all processes;
    steps from ``first`` to ``steps`` are read. Copies to a GPU go through pinned memory, asynchronously.
    """

    def __init__(
        self, task: Task, order: DataOrder, seed: int, batch: int, steps: int, first: int, processes: Processes,
        device: torch.device,
    ):  # fmt: skip
        self.task, self.order, self.seed, self.batch = task, order, seed, batch
        self.steps, self.device = steps, device
        self.share = batch // processes.size
        self.offset = processes.rank * self.share
        self._pool = thread_pool(device, "prefetch")
        self._next = first
        self._ready: list[Future[tuple[Batch, Batch]]] = []
        self._fill()

    def _fill(self) -> None:
        while len(self._ready) < AHEAD and self._next < self.steps:
            self._ready.append(self._pool.submit(self._read, self._next))
            self._next += 1

    def _read(self, step: int) -> tuple[Batch, Batch]:
        first = step * self.batch + self.offset
        draws = self.task.draw(Positions(self.seed, first, self.share))
        return self._pin(self.task.read(*self.order.batch(first, self.share), draws)), self._pin(draws)

    def _pin(self, tensors: Batch) -> Batch:
        pin = self.device.type == "cuda"
        return {name: value.pin_memory() for name, value in tensors.items()} if pin else tensors

    def take(self) -> tuple[Batch, Batch]:
        """Images and draws of the next step."""
        batch, draws = self._ready.pop(0).result()
        self._fill()
        return self._move(batch), self._move(draws)

    def _move(self, tensors: dict[str, Tensor]) -> Batch:
        return {name: value.to(self.device, non_blocking=True) for name, value in tensors.items()}

    def close(self) -> None:
        """Stop reading."""
        self._pool.shutdown(wait=True, cancel_futures=True)
