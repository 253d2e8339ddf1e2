"""Images or clips of one shape: read some of them, or load all into memory."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from ditlab.data.config import DataConfig, target_size
from ditlab.data.decode import DecodeError
from ditlab.data.source import Captions, Source
from ditlab.data.summary import Look, by, check_sizes, look_at, summary
from ditlab.data.transforms import centre_crop, centre_pad
from ditlab.errors import UserError

_THREADS = min(8, os.cpu_count() or 1)
_PER_TASK = 16
_LOAD_CHUNK = 1024


@dataclass(frozen=True)
class DataInfo:
    """Description of a data set."""

    title: str  # name for messages
    count: int  # images, unreadable ones included
    shape: tuple[int, ...]  # (C, H, W) of every image, or (C, F, H, W) of every clip
    names: tuple[str, ...]  # classes in label order, () without classes
    fingerprint: str  # hex; equal for equal images and preprocessing, without mirroring, which is drawn later
    counts: tuple[int, ...] = ()  # images of each class, in label order
    notes: tuple[str, ...] = ()  # lines for the user: classes, sizes, what was skipped
    captions: str = ""  # hex; equal for equal captions, empty without captions

    def describe(self) -> str:
        """One line for the log: ``digits: 1,797 images of 1x8x8, 10 classes``."""
        shape = "x".join(str(side) for side in self.shape)
        classes = f"{len(self.names)} class{'es' * (len(self.names) != 1)}" if self.names else "no classes"
        captions = ", captions" if self.captions else ""
        what = f"{'clip' if len(self.shape) == 4 else 'image'}{'s' * (self.count != 1)}"
        return f"{self.title}: {self.count:,} {what} of {shape}, {classes}{captions}"


@dataclass(frozen=True)
class Images:
    """Decoded images or clips in memory; names and fingerprint are those of their data set."""

    pixels: np.ndarray  # uint8 (N, C, H, W), or (N, C, F, H, W)
    labels: np.ndarray  # int64 (N,)
    names: tuple[str, ...]
    fingerprint: str
    skipped: tuple[str, ...]  # "name: reason" of each image that could not be decoded
    captions: Captions = None  # of each image, see Source

    def __len__(self) -> int:
        return len(self.pixels)

    @property
    def shape(self) -> tuple[int, ...]:
        """(C, H, W), or (C, F, H, W)."""
        return self.pixels.shape[1:]

    def read(self, indices: np.ndarray, flips: np.ndarray | None = None) -> np.ndarray:
        """A copy, uint8 (M, *shape), of images ``indices`` (M,), mirrored left to right where ``flips`` (M,) is True."""
        chosen = self.pixels[indices]
        if flips is not None and flips.any():
            chosen[flips] = chosen[flips][..., ::-1]
        return chosen


class Dataset:
    """Images or clips of a source, or of a function that opens it, brought to one shape.

    With ``info``, the description of the data set, the source is opened only when images or labels are used. ``skipped``
    maps the index of each image read so far that could not be decoded to ``name: reason``. Raises a UserError if no image
    can be decoded or the first one does not fit.
    """

    def __init__(self, source: Source | Callable[[], Source], config: DataConfig, info: DataInfo | None = None) -> None:
        self.config, self._open = config, source
        self.skipped: dict[int, str] = {}
        self._target = target_size(config)
        self._shape: tuple[int, ...] | None = info and info.shape
        self._channels = info.shape[0] if info else config.channels
        if info is None:
            fingerprint, source = self._fingerprint(self.source), self.source
            self._channels = self._channels or self.look.channels
            check_sizes(self.look, source, config)
            self._shape = self._first_shape()
            counts = tuple(np.bincount(self.labels, minlength=len(source.names)).tolist()) if source.names else ()
            notes = summary(source, self.labels, self.captions, self.look, config)
            captions = "" if self.captions is None else caption_digest(self.captions)
            info = DataInfo(
                source.title, len(self._chosen), self._shape, source.names, fingerprint, counts, notes, captions
            )
        self.info = info
        self.names, self.shape, self.fingerprint = info.names, info.shape, info.fingerprint

    @cached_property
    def source(self) -> Source:
        """The source of the images, opened at first use; a UserError if it differs from the description given."""
        source = self._open() if callable(self._open) else self._open
        if self._shape is not None and self._fingerprint(source) != self.fingerprint:
            raise UserError(f"the images of {source.title} have changed; `ditlab encode` lists them again")
        return source

    @property
    def listed(self) -> bool:
        """Whether the source has been opened."""
        return "source" in vars(self)

    @cached_property
    def _chosen(self) -> np.ndarray:
        """Indices in the source of the images used, int64 (N,)."""
        count, limit = len(self.source), self.config.limit
        return _subset(count, limit) if 0 < limit < count else np.arange(count)

    @cached_property
    def look(self) -> Look:
        """Shapes of some of the images, from their headers."""
        return look_at(self.source, self._chosen)

    @cached_property
    def labels(self) -> np.ndarray:
        """int64 (N,); all 0 without classes."""
        return self.source.labels[self._chosen]

    @cached_property
    def captions(self) -> Captions:
        """Captions of each image, None without captions."""
        captions = self.source.captions
        return None if captions is None else [captions[row] for row in self._chosen.tolist()]

    def __len__(self) -> int:
        return self.info.count

    @property
    def size(self) -> tuple[int, int]:
        """Height and width."""
        return self.shape[-2], self.shape[-1]

    def describe(self) -> str:
        """One line for the log: ``digits: 1,797 images of 1x8x8, 10 classes``."""
        return self.info.describe()

    def read(self, indices: Sequence[int] | np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Decode images ``indices`` (K,); those that cannot be decoded are recorded in ``skipped``.

        Returns uint8 (M, *shape) and the indices of these images, int64 (M,); M is K minus the unreadable ones. Raises a
        UserError if an image has another shape and no size was given, or is too large to be padded.
        """
        wanted = np.asarray(indices, np.int64).reshape(-1)
        if len(wanted) and not (wanted.min() >= 0 and wanted.max() < len(self)):
            raise IndexError(f"image index outside 0 to {len(self) - 1}")
        pixels = np.empty((len(wanted), *self.shape), np.uint8)
        readable = self._fill(pixels, wanted)
        return (pixels, wanted) if readable.all() else (pixels[readable], wanted[readable])

    def load(self, progress: Callable[[int, int], None] | None = None) -> Images:
        """Decode all images; ``progress`` gets the number of images done and of all images.

        Raises a UserError if no image can be decoded or they do not fit in memory, or see ``read``.
        """
        needed, present = len(self) * int(np.prod(self.shape)), os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        if needed > present:
            raise UserError(
                f"{len(self):,} images need {needed / 2**30:.1f} GiB, this machine has {present / 2**30:.1f}; "
                "give a smaller --data.size or --data.limit"
            )
        pixels = np.empty((len(self), *self.shape), np.uint8)
        readable = np.empty(len(self), np.bool_)
        for start in range(0, len(self), _LOAD_CHUNK):
            stop = min(start + _LOAD_CHUNK, len(self))
            readable[start:stop] = self._fill(pixels[start:stop], np.arange(start, stop))
            if progress is not None:
                progress(stop, len(self))
        if not readable.any():
            raise self._nothing_readable()
        if not readable.all():
            pixels = pixels[readable]
        skipped = tuple(self.skipped[index] for index in sorted(self.skipped))
        captions = self.captions
        if captions is not None:
            captions = [captions[index] for index in np.flatnonzero(readable).tolist()]
        return Images(pixels, self.labels[readable], self.names, self.fingerprint, skipped, captions)

    def _fill(self, pixels: np.ndarray, indices: np.ndarray) -> np.ndarray:
        """Write image ``indices[i]`` to ``pixels[i]``, uint8 of the set's shape; returns which could be decoded, bool (M,)."""
        readable = np.zeros(len(indices), np.bool_)

        def prepare(start: int) -> None:
            for row in range(start, min(start + _PER_TASK, len(indices))):
                image = self._prepare(int(indices[row]))
                if image is not None:
                    pixels[row] = np.moveaxis(image, -1, 0)
                    readable[row] = True

        starts = range(0, len(indices), _PER_TASK)
        if self.source.threaded and len(starts) > 1 and _THREADS > 1:
            with ThreadPoolExecutor(min(_THREADS, len(starts)), "decode") as pool:
                list(pool.map(prepare, starts))  # raises the first error and cancels the tasks after it
        else:
            for start in starts:
                prepare(start)
        return readable

    def _prepare(self, index: int) -> np.ndarray | None:
        """One image as uint8 (H, W, C), or clip (F, H, W, C); None if it cannot be decoded."""
        if index in self.skipped:
            return None
        row = int(self._chosen[index])
        try:
            image = self.source.decode(row, self._channels)
        except DecodeError as error:
            self.skipped[index] = f"{self.source.name(row)}: {error}"
            return None
        size = image.shape[-3:-1]
        if image.ndim == 4:  # a source of clips renders them at the size
            return image
        if self._target is not None:
            if self.config.fit == "crop":
                return centre_crop(image, self._target)
            if size[0] > self._target[0] or size[1] > self._target[1]:
                raise UserError(
                    f"{self.source.name(row)} has size {by(size)} (HxW), larger than {by(self._target)}; "
                    "give a larger --data.size, or --data.fit crop"
                )
            return centre_pad(image, self._target)
        if self._shape is not None and size != self._shape[1:]:
            raise UserError(
                f"{self.source.name(row)} has size {by(size)} (HxW), the first image has {by(self._shape[1:])}; "
                "give --data.size to bring all images to one size"
            )
        return image

    def _first_shape(self) -> tuple[int, ...]:
        for index in range(len(self._chosen)):
            image = self._prepare(index)
            if image is not None:
                return image.shape[-1], *image.shape[:-1]
        raise self._nothing_readable()

    def _nothing_readable(self) -> UserError:
        return UserError(
            f"none of the {len(self._chosen):,} images of {self.source.title} can be decoded (first: {self.skipped[0]}); "
            "give images in PNG, JPEG, WebP, AVIF, GIF, BMP, TIFF or what else Pillow reads"
        )

    def _fingerprint(self, source: Source) -> str:
        config = self.config
        limit = config.limit if config.limit < len(source) else 0
        settings = [config.split, self._target, config.fit, config.channels, limit, source.names]
        digest = hashlib.sha256(json.dumps(settings).encode())
        for part in source.identity():
            digest.update(part)
        return digest.hexdigest()


def caption_digest(captions: Sequence[tuple[str, ...]]) -> str:
    """Hex digest that differs for different captions."""
    digest = hashlib.sha256()
    for each in captions:
        digest.update(json.dumps(each).encode())
    return digest.hexdigest()


def _subset(count: int, limit: int) -> np.ndarray:
    """The same ``limit`` of ``count`` images every time; a smaller limit gives the first images of a larger one."""
    return np.argsort(np.random.Philox(key=0).random_raw(count), kind="stable")[:limit]
