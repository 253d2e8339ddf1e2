"""Training speed relative to the machine's, and memory used."""

from __future__ import annotations

import resource
import time
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch

from ditlab.runtime.distributed import Processes

GIB = 2**30


def matrix_rate(device: torch.device, precision: str) -> float:
    """Floating-point operations a second of a large matrix product: the denominator of MFU.

    2 * side ** 3 operations each, the median of seven, in bfloat16 for ``bf16`` and in float32 for anything else.
    """
    side = 8192 if device.type == "cuda" else 1024
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    a, b = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    seconds = []
    for _ in range(9):
        _synchronize(device)
        start = time.perf_counter()
        torch.mm(a, b)
        _synchronize(device)
        seconds.append(time.perf_counter() - start)
    return 2 * side**3 / float(np.median(seconds[2:]))


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def peak_memory(device: torch.device) -> float:
    """The most GiB this process has held: of the GPU, or of the machine if it computes on the CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / GIB
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


class Speed:
    """Images a second since the last row of metrics, and model FLOPs utilisation (MFU).

    Pauses (pictures, checkpoints) do not count, nor does the first step of a session, which compiles.
    """

    def __init__(self, precision: str, operations: float, device: torch.device, processes: Processes):
        self.operations, self.device = operations, device
        # FLOP/s of all processes at the measured matrix product rate; 0 if the operations of an image are unknown.
        self.best = matrix_rate(device, precision) * processes.size if operations else 0.0
        self.loss: float | None = None  # for the progress bar; None before the first row
        self._images, self._paused = 0, 0.0
        self._pause: float | None = None  # when the present pause started
        self._window = (0, 0.0)  # images and seconds at its start
        self._rate = 0.0  # of the window before
        self.start()

    def start(self) -> None:
        """Start the clock, before the first step."""
        self._start = time.perf_counter()

    def add(self, images: int) -> None:
        """Count the images of a step."""
        self._images += images
        if self._images == images:
            _synchronize(self.device)
            self._next_window()

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Exclude the time of this context."""
        _synchronize(self.device)  # steps that are still queued are training
        self._pause = time.perf_counter()
        yield
        self._paused += time.perf_counter() - self._pause
        self._pause = None

    @property
    def seconds(self) -> float:
        """Of training, in this session."""
        now = self._pause or time.perf_counter()  # the progress line is also printed in a pause
        return max(now - self._start - self._paused, 1e-9)

    @property
    def images_per_second(self) -> float:
        """Over all processes, since the last row; if there was no step since, of the window before."""
        images, seconds = self._images - self._window[0], self.seconds - self._window[1]
        return images / max(seconds, 1e-9) if images else self._rate

    @property
    def utilisation(self) -> float:
        """MFU: 6 operations a multiply-accumulate and image, relative to the matrix product rate."""
        return self.images_per_second * self.operations / self.best if self.best else 0.0

    def __str__(self) -> str:
        """For the progress bar."""
        used = f", {self.utilisation:.0%} MFU" if self.best else ""
        loss = f", loss {self.loss:.4f}" if self.loss is not None else ""
        return f"{self.images_per_second:,.0f} images/s{used}, {peak_memory(self.device):.1f} GiB{loss}"

    def row(self) -> dict[str, float]:
        """For metrics.jsonl; starts a new window."""
        row = {"images_per_second": round(self.images_per_second, 1), "seconds": round(self.seconds, 2)}
        row["memory_gib"] = round(peak_memory(self.device), 3)
        if self.best:
            row |= {"mfu": round(self.utilisation, 4), "mfu_of_tflops": round(self.best / 1e12, 3)}
        self._next_window()
        return row

    def _next_window(self) -> None:
        self._rate, self._window = self.images_per_second, (self._images, self.seconds)
