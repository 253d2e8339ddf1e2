"""The training images closest to made ones, in pixels or in what a feature network sees."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from ditlab.data import DataConfig, Dataset, open_data
from ditlab.errors import UserError
from ditlab.evaluate import extract, feature_network, nearest_neighbours, real_features, small_pixels
from ditlab.evaluate.real import BATCH

SPACES = ("pixels", "features")
MOST = 200_000  # training images that are looked through; of more, so many are drawn


@dataclass(frozen=True)
class Found:
    """The closest training images of each made one.

    Attributes:
        images: uint8 (N, k, H, W, C), the closest first.
        distances: of them, (N, k).
        beside: from the closest training image to the one closest to that, (N,): what is usual there.
    """

    images: np.ndarray
    distances: np.ndarray
    beside: np.ndarray


class TrainingImages:
    """Training images as rows of numbers, in one space.

    Args:
        config: the images.
        space: one of SPACES.
        tell: told the share that has been looked at, now and then.

    Raises:
        UserError: the images, or the feature network, are not to be had here.
    """

    def __init__(self, config: DataConfig, space: str, tell: Callable[[float], None] = lambda share: None):
        if space not in SPACES:
            raise UserError(f"unknown space {space[:100]!r}; {' or '.join(SPACES)}")
        dataset = open_data(config)
        self.total = len(dataset)
        if self.total > MOST:
            dataset = open_data(replace(config, limit=MOST))
        self.dataset, self.space = dataset, space
        self._network = None
        if space == "features":
            self._network = feature_network("efficientnet-lite0", dataset.shape[1:])
            real = real_features(dataset, self._network, progress=lambda done: tell(done / len(dataset)))
            assert real is not None
            self.rows, self.indices = real.pooled, real.indices
        else:
            parts, found = [], []
            for start in range(0, len(dataset), BATCH):
                pixels, indices = dataset.read(np.arange(start, min(start + BATCH, len(dataset))))
                parts.append(small_pixels(pixels.transpose(0, 2, 3, 1)))
                found.append(indices)
                tell(start / len(dataset))
            self.rows, self.indices = np.concatenate(parts), np.concatenate(found)

    def closest(self, made: np.ndarray, count: int) -> Found:
        """The closest training images of images uint8 (N, H, W, C).

        Raises:
            UserError: images of another size.
        """
        channels, height, width = self.dataset.shape
        if made.shape[1:] != (height, width, channels):
            raise UserError(
                f"the model makes images of {made.shape[1:]}, its training images are {(height, width, channels)}"
            )
        queries = small_pixels(made) if self._network is None else extract(self._network, made).pooled
        index, distances = nearest_neighbours(queries, self.rows, count)
        _, beside = nearest_neighbours(self.rows[index[:, 0]], self.rows, 2)  # the first is that image itself
        images = [_read(self.dataset, self.indices[row]) for row in index]
        return Found(np.stack(images), distances, beside[:, -1])


def _read(dataset: Dataset, indices: np.ndarray) -> np.ndarray:
    pixels, found = dataset.read(indices)
    if len(found) < len(indices):
        raise UserError("a training image can no longer be read; look again")
    return pixels.transpose(0, 2, 3, 1)
