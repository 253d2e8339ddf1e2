"""The interface of a source of images, and the base class of sources whose images are encoded files."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Protocol, TypeVar

import numpy as np

from ditlab.data.decode import DecodeError, decode_image, image_shape

T = TypeVar("T")
Stamps = dict[str, list[int]]
Captions = Sequence[tuple[str, ...]] | None

IMAGE_COLUMNS = ("image", "images", "img", "jpg", "jpeg", "png", "webp", "picture", "photo")  # usual names in tables

_WORTH_THREADS = 4096

MEMORY_LIMIT = 4 * 2**30
"""Bytes that a source that loads its encoded files into memory may take at most."""


class Once(Protocol):
    """Calls a function in one of several processes and returns its result in all of them."""

    def __call__(self, make: Callable[[], T]) -> T: ...  # noqa: D102


def call(make: Callable[[], T]) -> T:
    """``Once`` for a single process."""
    return make()


def stamp(path: str | os.PathLike[str], status: os.stat_result | None = None) -> list[int]:
    """Modification time in nanoseconds and size in bytes of a file or folder."""
    status = status or Path(path).stat()
    return [status.st_mtime_ns, status.st_size]


def stamps_of(*paths: Path) -> Stamps:
    """Stamps of files and folders by their absolute paths."""
    return {str(path.resolve()): stamp(path) for path in paths}


def printable(name: str) -> str:
    """A file name that can be printed and written as UTF-8, whatever bytes it has on disk."""
    return os.fsencode(name).decode("utf-8", "replace").replace("\n", " ").replace("\r", " ")


class Source(ABC):
    """Images with labels, decoded one at a time at their native size."""

    title: str  # name for messages, for example digits or the path
    names: tuple[str, ...]  # classes in label order, () if the images have no classes
    labels: np.ndarray  # int64 (N,), all 0 if the images have no classes
    threaded: bool  # whether decoding is slow enough for a thread pool to pay off
    stamps: Stamps  # of the folders and files, by absolute path, that change when images are added or removed
    notes: tuple[str, ...] = ()  # lines for the user: what was skipped, where the classes come from
    captions: Captions = (
        None  # of each image, one or several; an empty tuple where an image has none; None without captions
    )

    def __len__(self) -> int:
        return len(self.labels)

    @abstractmethod
    def name(self, index: int) -> str:
        """Name of image ``index`` for messages."""

    @abstractmethod
    def decode(self, index: int, channels: int) -> np.ndarray:
        """Image ``index`` as uint8 (H, W, C) with ``channels`` channels, 0 for its own; safe from several threads.

        Raises a DecodeError with the reason if the image is broken.
        """

    def header(self, index: int) -> tuple[int, int, int] | None:
        """Height, width and channels of image ``index`` as it is stored; None if it is broken."""
        try:
            return self.decode(index, 0).shape  # type: ignore[return-value]
        except DecodeError:
            return None

    @abstractmethod
    def identity(self) -> Iterator[bytes]:
        """Bytes to hash that differ for different images or labels."""


class WrittenCaptions(Sequence[tuple[str, ...]]):
    """One caption for each of ``images`` images, written by ``caption`` when it is read: a limit reads few of them."""

    def __init__(self, images: int, caption: Callable[[int], str]) -> None:
        self.images, self.caption = images, caption

    def __len__(self) -> int:
        return self.images

    def __getitem__(self, index):  # type: ignore[no-untyped-def]
        if isinstance(index, slice):
            return [self[row] for row in range(*index.indices(len(self)))]
        return (self.caption(int(index)),)


class EncodedSource(Source):
    """A source of files in image formats; a subclass provides the bytes of each.

    ``files`` are the names of the images, independent of where the data is stored, ``sizes`` their encoded bytes.
    """

    def __init__(
        self, title: str, files: Sequence[str], sizes: Sequence[int], labels: np.ndarray, names: tuple[str, ...],
        stamps: Stamps, notes: tuple[str, ...] = (), captions: Captions = None,
    ) -> None:  # fmt: skip
        self.title, self.files, self.sizes, self.labels, self.names = title, files, sizes, labels, names
        self.stamps, self.notes, self.captions = stamps, notes, captions
        # For a tiny image, Pillow's Python code, which holds the interpreter lock, takes longer than the decoding.
        self.threaded = len(sizes) > 0 and sum(sizes) / len(sizes) > _WORTH_THREADS

    @abstractmethod
    def encoded(self, index: int) -> bytes:
        """The encoded bytes of image ``index``; a DecodeError if they cannot be read."""

    def name(self, index: int) -> str:
        """The file's name."""
        return printable(self.files[index])

    def decode(self, index: int, channels: int) -> np.ndarray:
        """See Source.decode."""
        return decode_image(self.encoded(index), channels)

    def header(self, index: int) -> tuple[int, int, int] | None:
        """See Source.header; decodes no pixels."""
        try:
            return image_shape(self.encoded(index))
        except DecodeError:
            return None

    def identity(self) -> Iterator[bytes]:
        """Names, byte sizes and labels: differs unless a file was edited in place, and is much cheaper than content."""
        for file, size, label in zip(self.files, self.sizes, self.labels, strict=True):
            yield os.fsencode(file) + f"\0{size}\0{label}\n".encode()
