"""Nearest training images of generated images, in pixel space or in the feature space of EfficientNet-Lite0."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from ditlab.data import DataConfig, Dataset, open_data
from ditlab.errors import UserError
from ditlab.evaluate import extract, feature_network, nearest_neighbours, real_features, small_pixels
from ditlab.evaluate.real import BATCH

SPACES = ("pixels", "features")
MAX_IMAGES = 200_000  # of a larger training set, a random subset of this size is searched


@dataclass(frozen=True)
class Neighbours:
    """The nearest training images of each generated image.

    Attributes:
        images: uint8 (N, k, H, W, C), the nearest first.
        distances: distances to them, (N, k).
        reference: distance from the nearest training image to its own nearest neighbour in the training set, (N,).
    """

    images: np.ndarray
    distances: np.ndarray
    reference: np.ndarray


class TrainingImages:
    """A searchable set of training images.

    Args:
        config: the training images.
        space: one of SPACES.
        progress: called with the fraction of images read so far.

    Raises:
        UserError: the images or the feature network are not available.
    """

    def __init__(self, config: DataConfig, space: str, progress: Callable[[float], None] = lambda fraction: None):
        if space not in SPACES:
            raise UserError(f"unknown feature space {space[:100]!r}; available: {', '.join(SPACES)}")
        dataset = open_data(config)
        self.total = len(dataset)
        if self.total > MAX_IMAGES:
            dataset = open_data(replace(config, limit=MAX_IMAGES))
        self.dataset, self.space = dataset, space
        self._network = None
        if space == "features":
            self._network = feature_network("efficientnet-lite0", dataset.size)
            real = real_features(dataset, self._network, progress=lambda done: progress(done / len(dataset)))
            assert real is not None
            self.rows, self.indices = real.pooled, real.indices
        else:
            parts, found = [], []
            for start in range(0, len(dataset), BATCH):
                pixels, indices = dataset.read(np.arange(start, min(start + BATCH, len(dataset))))
                parts.append(small_pixels(pixels.transpose(0, 2, 3, 1)))
                found.append(indices)
                progress(start / len(dataset))
            self.rows, self.indices = np.concatenate(parts), np.concatenate(found)

    def search(self, generated: np.ndarray, count: int) -> Neighbours:
        """The ``count`` nearest training images of images uint8 (N, H, W, C).

        Raises:
            UserError: images of another size.
        """
        channels, height, width = self.dataset.shape
        if generated.shape[1:] != (height, width, channels):
            raise UserError(
                f"generated images have shape {generated.shape[1:]}, training images {(height, width, channels)}"
            )
        queries = small_pixels(generated) if self._network is None else extract(self._network, generated).pooled
        index, distances = nearest_neighbours(queries, self.rows, count)
        _, reference = nearest_neighbours(self.rows[index[:, 0]], self.rows, 2)  # the first is the image itself
        images = [_read(self.dataset, self.indices[row]) for row in index]
        return Neighbours(np.stack(images), distances, reference[:, -1])


def _read(dataset: Dataset, indices: np.ndarray) -> np.ndarray:
    pixels, found = dataset.read(indices)
    if len(found) < len(indices):
        raise UserError("a training image can no longer be read; search again")
    return pixels.transpose(0, 2, 3, 1)
