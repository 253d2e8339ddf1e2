"""Random draws by position: the numbers of image p of a run depend on the seed, their name and p, and on nothing else.

A counter-based generator (Philox 4x64-10, Salmon et al. 2011) makes any of them without the ones before, so each of many
processes draws for its own images only, and a run is the same on any number of processes.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

_WORDS = 4  # 64-bit words a counter gives
_UNIT = np.float32(2**-32)


class RandomStream:
    """Draws of one name; position p owns a block of counters of its own, as long as one draw takes.

    Args:
        seed: of the run.
        name: of what is drawn; streams of different names are independent.
    """

    def __init__(self, seed: int, name: str):
        self._key = np.random.SeedSequence([seed, zlib.crc32(name.encode())]).generate_state(2, np.uint64)

    def _words(self, start: int, count: int, each: int) -> np.ndarray:
        """``each`` 64-bit words of every position from ``start``, uint64 (count, each)."""
        blocks = -(-each // _WORDS)
        counter = [(start * blocks >> 64 * word) & (2**64 - 1) for word in range(4)]
        words = np.random.Philox(key=self._key, counter=counter).random_raw(count * blocks * _WORDS)
        return words.reshape(count, blocks * _WORDS)[:, :each]

    def uniform(self, start: int, count: int, shape: tuple[int, ...] = ()) -> Tensor:
        """Uniform on [0, 1) in steps of 2^-24: float32 (count, *shape), of positions ``start`` and on."""
        words = self._words(start, count, int(np.prod(shape)))
        values = (words >> np.uint64(40)).astype(np.float32) * np.float32(2**-24)
        return torch.from_numpy(values.reshape(count, *shape))

    def integers(self, start: int, count: int, high: int, shape: tuple[int, ...] = ()) -> Tensor:
        """Uniform on 0 .. high - 1, with a bias below high / 2^32: int64 (count, *shape)."""
        words = self._words(start, count, int(np.prod(shape)))
        values = ((words >> np.uint64(32)) * np.uint64(high) >> np.uint64(32)).astype(np.int64)
        return torch.from_numpy(values.reshape(count, *shape))

    def normal(self, start: int, count: int, shape: tuple[int, ...] = ()) -> Tensor:
        """Standard normal: float32 (count, *shape).

        Box and Muller (1958): one word gives two, sqrt(-2 ln u) cos(2 pi v) and sqrt(-2 ln u) sin(2 pi v), with u from its
        upper and v from its lower 32 bits. The largest magnitude is sqrt(-2 ln 2^-33) = 6.76.
        """
        size = int(np.prod(shape))
        words = self._words(start, count, -(-size // 2))
        u = (words >> np.uint64(32)).astype(np.float32) * _UNIT + _UNIT / 2
        angle = (words & np.uint64(2**32 - 1)).astype(np.float32) * (_UNIT * np.float32(2 * np.pi))
        radius = np.sqrt(np.float32(-2) * np.log(u))
        values = np.concatenate([radius * np.cos(angle), radius * np.sin(angle)], axis=1)[:, :size]
        return torch.from_numpy(np.ascontiguousarray(values).reshape(count, *shape))


@dataclass(frozen=True)
class Positions:
    """The random numbers of images ``start`` .. ``start + count - 1`` of a run, by name. A position is step * batch + index."""

    seed: int
    start: int
    count: int

    def uniform(self, name: str, shape: tuple[int, ...] = ()) -> Tensor:
        """Uniform on [0, 1), float32 (count, *shape)."""
        return RandomStream(self.seed, name).uniform(self.start, self.count, shape)

    def integers(self, name: str, high: int) -> Tensor:
        """Uniform on 0 .. high - 1, int64 (count,)."""
        return RandomStream(self.seed, name).integers(self.start, self.count, high)

    def normal(self, name: str, shape: tuple[int, ...] = ()) -> Tensor:
        """Standard normal, float32 (count, *shape)."""
        return RandomStream(self.seed, name).normal(self.start, self.count, shape)
