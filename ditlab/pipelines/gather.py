"""What several processes made, put together in order."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import zip_longest
from typing import TypeVar

import numpy as np

from ditlab.runtime.distributed import Processes

T = TypeVar("T")


def gather(made: Iterator[np.ndarray], processes: Processes) -> np.ndarray:
    """The images of ``Pipeline.batches`` of all processes, in order, in the first one; nothing (0, ...) in the others."""
    batches = list(made)
    everyone = processes.gather(batches)
    if not processes.is_main:
        return np.empty(0, np.uint8)
    return np.concatenate(in_order(everyone))


def in_order(everyone: Sequence[Sequence[T]]) -> list[T]:
    """What every process made of its every size-th batch, in the order of the batches."""
    return [made for turn in zip_longest(*everyone) for made in turn if made is not None]
