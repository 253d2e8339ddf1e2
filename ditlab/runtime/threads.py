"""CPU threads: timed with one and with all, since on a shared machine more threads can be slower."""

from __future__ import annotations

import os
import time
from collections.abc import Callable

import torch

from ditlab.runtime.distributed import Processes

REPEATS = (
    3  # timed calls after a first one, of which the fastest counts: other work on the machine only slows a call down
)
ALL = torch.get_num_threads()  # what PyTorch takes by default: one per core, or OMP_NUM_THREADS


def thread_counts(given: int, processes: Processes) -> tuple[int, ...]:
    """The numbers of threads to choose from; a single one if it is ``given``, or set by OMP_NUM_THREADS or torchrun."""
    if given:
        return (given,)
    fixed = "OMP_NUM_THREADS" in os.environ or processes.size > 1
    return (torch.get_num_threads(),) if fixed or ALL == 1 else (1, ALL)


def time_threads(step: Callable[[], object], counts: tuple[int, ...]) -> dict[int, float]:
    """Seconds of ``step`` with each number of threads; the fastest stays set."""
    seconds = {}
    for count in counts:
        torch.set_num_threads(count)
        seconds[count] = min(_seconds(step) for _ in range(1 + REPEATS))
    torch.set_num_threads(fastest(seconds))
    return seconds


def fastest(seconds: dict[int, float]) -> int:
    """The number of threads with the shortest time."""
    return min(seconds, key=seconds.__getitem__)


def describe(seconds: dict[int, float], flag: str = "OMP_NUM_THREADS") -> str:
    """The log line of a choice: ``CPU threads: 1 (OMP_NUM_THREADS); a step takes 0.4 s with 1 and 2 s with 2``."""
    times = " and ".join(f"{value:.2g} s with {count}" for count, value in seconds.items())
    return f"CPU threads: {fastest(seconds)} ({flag}); a step takes {times}"


def _seconds(step: Callable[[], object]) -> float:
    start = time.perf_counter()
    step()
    return time.perf_counter() - start
