"""The training images closest to made ones, in pixels or in what a feature network sees."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from ditlab.data import DataConfig, Dataset, open_data
from ditlab.errors import UserError
from ditlab.evaluate import feature_network
from ditlab.evaluate.evaluator import small_pixels
from ditlab.evaluate.neighbours import squared_distances
from ditlab.evaluate.real import BATCH, extract, real_features

SPACES = ("pixels", "features")
MOST = 200_000  # training images that are looked through; of more, so many are drawn
ROWS = 8192  # of distances at a time


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
            real = real_features(dataset, self._network, tell=lambda done: tell(done / len(dataset)))
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
        count = min(count, len(self.rows))
        index, distances = self._search(queries, count)
        _, beside = self._search(self.rows[index[:, 0]], min(2, len(self.rows)))  # the first is that image itself
        images = [_read(self.dataset, self.indices[row]) for row in index]
        return Found(np.stack(images), distances, beside[:, -1])

    def _search(self, queries: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
        best, least = np.zeros((len(queries), 0), np.int64), np.zeros((len(queries), 0))
        for start in range(0, len(self.rows), ROWS):
            squared = squared_distances(queries, self.rows[start : start + ROWS])
            least = np.concatenate([least, squared], axis=1)
            best = np.concatenate([best, np.broadcast_to(start + np.arange(squared.shape[1]), squared.shape)], axis=1)
            order = np.argsort(least, axis=1, kind="stable")[:, :count]
            best, least = (np.take_along_axis(part, order, axis=1) for part in (best, least))
        return best, np.sqrt(least)


def _read(dataset: Dataset, indices: np.ndarray) -> np.ndarray:
    pixels, found = dataset.read(indices)
    if len(found) < len(indices):
        raise UserError("a training image can no longer be read; look again")
    return pixels.transpose(0, 2, 3, 1)
