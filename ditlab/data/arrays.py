"""Sources whose pixels are one array in memory: scikit-learn's digits and IDX files."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from ditlab.data.decode import array_to_channels
from ditlab.data.source import Source, Stamps
from ditlab.errors import UserError


class ArraySource(Source):
    """Images of one array, uint8 (N, H, W, C); the other arguments are attributes of Source."""

    threaded = False

    def __init__(
        self, title: str, pixels: np.ndarray, labels: np.ndarray, names: tuple[str, ...], stamps: Stamps | None = None
    ) -> None:
        self.title, self.pixels, self.labels, self.names = title, pixels, labels, names
        self.stamps = stamps or {}

    def name(self, index: int) -> str:
        """The image's index in the array."""
        return f"{self.title} image {index}"

    def decode(self, index: int, channels: int) -> np.ndarray:
        """See Source.decode."""
        return array_to_channels(self.pixels[index], channels)

    def identity(self) -> Iterator[bytes]:
        """Shape, pixels and labels."""
        yield str(self.pixels.shape).encode()
        yield self.pixels.tobytes()
        yield self.labels.tobytes()


def open_digits(split: str) -> ArraySource:
    """scikit-learn's 1,797 handwritten digits of 8 by 8 pixels; their 17 grey levels are scaled to 0 to 255."""
    if split != "train":
        raise UserError(f"digits has no {split} split; it has one split of 1,797 images, train")
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise UserError("digits needs the package scikit-learn; pip install 'ditlab[demo]'") from error
    levels, labels = map(np.asarray, load_digits(return_X_y=True))
    pixels = np.round(levels * 255 / 16).astype(np.uint8).reshape(-1, 8, 8, 1)
    return ArraySource("digits", pixels, labels.astype(np.int64), tuple(str(digit) for digit in range(10)))
