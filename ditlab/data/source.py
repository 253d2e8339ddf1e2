"""What every source of images offers, and the part that sources of encoded files share."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence

import numpy as np

from ditlab.data.decode import decode_image

_WORTH_THREADS = 4096

MEMORY_LIMIT = 4 * 2**30
"""Most bytes a source that must hold its files in memory may take."""


def printable(name: str) -> str:
    """A file name that can be printed and written as UTF-8, whatever bytes it has on disk."""
    return os.fsencode(name).decode("utf-8", "replace").replace("\n", " ").replace("\r", " ")


class Source(ABC):
    """Images with labels, decoded one at a time at their native size.

    Attributes:
        title: what people call it, for example ``digits`` or the path.
        names: label names in label order, ``()`` when the images have no classes.
        labels: int64 (N,), all 0 when the images have no classes.
        threaded: whether decoding is slow enough to be worth a thread pool.
    """

    title: str
    names: tuple[str, ...]
    labels: np.ndarray
    threaded: bool

    def __len__(self) -> int:
        return len(self.labels)

    @abstractmethod
    def name(self, index: int) -> str:
        """What to call image ``index`` in a message."""

    @abstractmethod
    def decode(self, index: int, channels: int) -> np.ndarray:
        """Image ``index`` as uint8 (H, W, C) with ``channels`` channels, 0 for its own; safe from several threads.

        Raises:
            Unreadable: the image is broken; its message is the reason.
        """

    @abstractmethod
    def identity(self) -> Iterator[bytes]:
        """What makes these images these and no others, to be hashed."""


class EncodedSource(Source):
    """A source of files in image formats: a subclass gives the bytes of each.

    Args:
        title: what people call it.
        files: a name of each image, the same wherever the data is kept.
        sizes: bytes of each encoded image.
        labels: int64 (N,).
        names: label names in label order.
    """

    def __init__(
        self, title: str, files: Sequence[str], sizes: Sequence[int], labels: np.ndarray, names: tuple[str, ...]
    ) -> None:
        self.title, self.files, self.sizes, self.labels, self.names = title, files, sizes, labels, names
        # Around a tiny image Pillow's Python code, which holds the interpreter lock, takes longer than the decoding.
        self.threaded = len(sizes) > 0 and sum(sizes) / len(sizes) > _WORTH_THREADS

    @abstractmethod
    def encoded(self, index: int) -> bytes:
        """The bytes of the file of image ``index``.

        Raises:
            Unreadable: they cannot be read.
        """

    def name(self, index: int) -> str:
        """The file's name."""
        return printable(self.files[index])

    def decode(self, index: int, channels: int) -> np.ndarray:
        """See Source.decode."""
        return decode_image(self.encoded(index), channels)

    def identity(self) -> Iterator[bytes]:
        """Names, byte sizes and labels: as good as the content for files not edited in place, and far cheaper."""
        for file, size, label in zip(self.files, self.sizes, self.labels, strict=True):
            yield os.fsencode(file) + f"\0{size}\0{label}\n".encode()
