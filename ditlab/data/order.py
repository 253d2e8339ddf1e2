"""The order in which training reads images: a pure function of the seed and of the number of images read before."""

from __future__ import annotations

import numpy as np

from ditlab.errors import UserError

_PERMUTATION, _FLIPS = 0, 1
_KEPT_EPOCHS = 2


class DataOrder:
    """Every image once per epoch, in a new random order each epoch, with random flips.

    ``batch(p, a + b)`` equals ``batch(p, a)`` followed by ``batch(p + a, b)``, so batch size, number of processes,
    stopping and resuming do not change the order. With ``flip``, half of the images are mirrored, drawn again each epoch.
    """

    def __init__(self, count: int, seed: int, flip: bool = False) -> None:
        if count < 1:
            raise UserError(f"{count} images cannot be ordered; training needs at least one image")
        self.count, self.seed, self.flip = count, seed, flip
        self._epochs: dict[int, tuple[np.ndarray, np.ndarray]] = {}

    def batch(self, position: int, size: int) -> tuple[np.ndarray, np.ndarray]:
        """The indices of the next ``size`` images, int64 (size,), and whether to mirror each, bool (size,).

        ``position`` is the number of images read since the start of training; a batch may span epochs.
        """
        if position < 0 or size < 0:
            raise ValueError(f"position {position} and size {size} must not be negative")
        indices, flips = np.empty(size, np.int64), np.empty(size, np.bool_)
        filled = 0
        while filled < size:
            epoch, start = divmod(position + filled, self.count)
            stop = min(self.count, start + size - filled)
            permutation, mirrored = self._epoch(epoch)
            indices[filled : filled + stop - start] = permutation[start:stop]
            flips[filled : filled + stop - start] = mirrored[start:stop]
            filled += stop - start
        return indices, flips

    def _epoch(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """Permutation and flips of one epoch; the latest few are kept."""
        known = self._epochs.get(epoch)
        if known is None:
            permutation = np.argsort(self._raw(epoch, _PERMUTATION), kind="stable")
            flips = self._raw(epoch, _FLIPS) >> np.uint64(63) != 0 if self.flip else np.zeros(self.count, np.bool_)
            known = permutation, flips
            kept = list(self._epochs.items())[1 - _KEPT_EPOCHS :]
            self._epochs = {**dict(kept), epoch: known}
        return known

    def _raw(self, epoch: int, stream: int) -> np.ndarray:
        """``count`` 64-bit draws: NumPy guarantees the raw stream of a bit generator, but not Generator.permutation."""
        key = np.array([self.seed % 2**64, epoch], np.uint64)
        return np.random.Philox(key=key, counter=[0, 0, 0, stream]).random_raw(self.count)
