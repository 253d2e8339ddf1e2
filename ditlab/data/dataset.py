"""Prepared images: read some, or load all into memory."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from ditlab.data.config import DataConfig, target_size
from ditlab.data.decode import Unreadable
from ditlab.data.source import Source
from ditlab.data.transforms import centre_crop, centre_pad
from ditlab.errors import UserError

_THREADS = min(8, os.cpu_count() or 1)
_PER_TASK = 16
_LOAD_CHUNK = 1024


@dataclass(frozen=True)
class Images:
    """Decoded images in memory.

    Attributes:
        pixels: uint8 (N, C, H, W).
        labels: int64 (N,).
        names: label names in label order, ``()`` without classes.
        fingerprint: of the data set they come from.
        left_out: ``name: reason`` of each image that could not be decoded.
    """

    pixels: np.ndarray
    labels: np.ndarray
    names: tuple[str, ...]
    fingerprint: str
    skipped: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.pixels)

    @property
    def shape(self) -> tuple[int, int, int]:
        """Channels, height, width."""
        channels, height, width = self.pixels.shape[1:]
        return channels, height, width

    def read(self, indices: np.ndarray, flips: np.ndarray | None = None) -> np.ndarray:
        """A copy of some images.

        Args:
            indices: integers (M,).
            flips: bool (M,), True mirrors that image left to right; None mirrors none.

        Returns:
            uint8 (M, C, H, W).
        """
        chosen = self.pixels[indices]
        if flips is not None and flips.any():
            chosen[flips] = chosen[flips][..., ::-1]
        return chosen


class Dataset:
    """Images of a source brought to one shape.

    Attributes:
        labels: int64 (N,).
        names: label names in label order, ``()`` when the images have no classes (labels are then 0).
        shape: channels, height, width of every prepared image.
        fingerprint: hex; equal for equal images and preprocessing. Mirroring, drawn later, has no part in it.
        left_out: index -> ``name: reason`` of the images met so far that could not be decoded.

    Raises:
        UserError: no image can be decoded, or the first one does not fit.
    """

    def __init__(self, source: Source, config: DataConfig) -> None:
        self.source, self.config = source, config
        self.skipped: dict[int, str] = {}
        limited = 0 < config.limit < len(source)
        self._chosen = _draw(len(source), config.limit) if limited else np.arange(len(source))
        self.labels: np.ndarray = source.labels[self._chosen]
        self.names = source.names
        self._target = target_size(config)
        self.fingerprint = _fingerprint(source, config, self._target, config.limit if limited else 0)
        self._shape: tuple[int, int, int] | None = None
        self.shape: tuple[int, int, int] = self._first_shape()
        self._shape = self.shape

    def __len__(self) -> int:
        return len(self._chosen)

    def describe(self) -> str:
        """One line for people: ``digits: 1,797 images of 1x8x8, 10 classes``."""
        shape = "x".join(str(side) for side in self.shape)
        classes = f"{len(self.names)} class{'es' * (len(self.names) != 1)}" if self.names else "no classes"
        return f"{self.source.title}: {len(self):,} image{'s' * (len(self) != 1)} of {shape}, {classes}"

    def read(self, indices: Sequence[int] | np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Decode and prepare some images; those that cannot be decoded are recorded in ``left_out`` and skipped.

        Args:
            indices: integers (K,), each in [0, N).

        Returns:
            uint8 (M, C, H, W), and int64 (M,) the indices of these M images; M is K less the unreadable ones.

        Raises:
            UserError: an image is of another shape and no size was given, or too large to be padded.
            IndexError: an index outside [0, N).
        """
        wanted = np.asarray(indices, np.int64).reshape(-1)
        if len(wanted) and not (wanted.min() >= 0 and wanted.max() < len(self)):
            raise IndexError(f"image index outside 0 to {len(self) - 1}")
        pixels = np.empty((len(wanted), *self.shape), np.uint8)
        readable = self._fill(pixels, wanted)
        return (pixels, wanted) if readable.all() else (pixels[readable], wanted[readable])

    def load(self, progress: Callable[[int, int], None] | None = None) -> Images:
        """Decode everything into one array.

        Args:
            progress: called with images done and images in all as decoding goes on.

        Raises:
            UserError: nothing can be decoded, the images do not fit in memory, or see ``read``.
        """
        self._check_memory()
        pixels = np.empty((len(self), *self.shape), np.uint8)
        readable = np.empty(len(self), np.bool_)
        for start in range(0, len(self), _LOAD_CHUNK):
            stop = min(start + _LOAD_CHUNK, len(self))
            readable[start:stop] = self._fill(pixels[start:stop], np.arange(start, stop))
            if progress is not None:
                progress(stop, len(self))
        if not readable.any():
            raise self._nothing_readable()
        labels = self.labels
        if not readable.all():
            pixels, labels = pixels[readable], labels[readable]
        skipped = tuple(self.skipped[index] for index in sorted(self.skipped))
        return Images(pixels, labels, self.names, self.fingerprint, skipped)

    def _fill(self, pixels: np.ndarray, indices: np.ndarray) -> np.ndarray:
        """Write image ``indices[i]`` to ``pixels[i]``, uint8 (C, H, W); returns which could be decoded, bool (M,)."""
        readable = np.zeros(len(indices), np.bool_)

        def prepare(start: int) -> None:
            for place in range(start, min(start + _PER_TASK, len(indices))):
                image = self._prepare(int(indices[place]))
                if image is not None:
                    pixels[place] = image.transpose(2, 0, 1)
                    readable[place] = True

        starts = range(0, len(indices), _PER_TASK)
        if self.source.threaded and len(starts) > 1 and _THREADS > 1:
            with ThreadPoolExecutor(min(_THREADS, len(starts)), "decode") as pool:
                futures = [pool.submit(prepare, start) for start in starts]
                try:
                    for future in futures:
                        future.result()
                except BaseException:
                    pool.shutdown(cancel_futures=True)
                    raise
        else:
            for start in starts:
                prepare(start)
        return readable

    def _prepare(self, index: int) -> np.ndarray | None:
        """One image as uint8 (H, W, C), None if it cannot be decoded."""
        if index in self.skipped:
            return None
        place = int(self._chosen[index])
        try:
            image = self.source.decode(place, self.config.channels if self._shape is None else self._shape[0])
        except Unreadable as error:
            self.skipped[index] = f"{self.source.name(place)}: {error}"
            return None
        height, width = image.shape[:2]
        if self._target is not None:
            if self.config.fit == "crop":
                return centre_crop(image, *self._target)
            if height > self._target[0] or width > self._target[1]:
                raise UserError(
                    f"{self.source.name(place)} has height {height}, width {width}, which does not fit height "
                    f"{self._target[0]}, width {self._target[1]}; give a larger --data.size or --data.fit crop"
                )
            return centre_pad(image, *self._target)
        if self._shape is not None and (height, width) != self._shape[1:]:
            raise UserError(
                f"{self.source.name(place)} has height {height}, width {width} where the first image has height "
                f"{self._shape[1]}, width {self._shape[2]}; give --data.size to bring all to one size"
            )
        return image

    def _first_shape(self) -> tuple[int, int, int]:
        for index in range(len(self)):
            image = self._prepare(index)
            if image is not None:
                return image.shape[2], image.shape[0], image.shape[1]
        raise self._nothing_readable()

    def _nothing_readable(self) -> UserError:
        return UserError(
            f"none of the {len(self):,} images of {self.source.title} can be decoded (first: {self.skipped[0]}); "
            "give images in PNG, JPEG, WebP, BMP, GIF or TIFF"
        )

    def _check_memory(self) -> None:
        needed = len(self) * int(np.prod(self.shape))
        present = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        if needed > present:
            raise UserError(
                f"{len(self):,} images need {needed / 2**30:.1f} GiB and this machine has {present / 2**30:.1f}; "
                "give a smaller --data.size or --data.limit"
            )


def _draw(count: int, limit: int) -> np.ndarray:
    """The same ``limit`` of ``count`` images every time; a smaller limit gives the first of a larger one."""
    return np.argsort(np.random.Philox(key=0).random_raw(count), kind="stable")[:limit]


def _fingerprint(source: Source, config: DataConfig, target: tuple[int, int] | None, limit: int) -> str:
    settings = [config.split, target, config.fit, config.channels, limit, source.names]
    digest = hashlib.sha256(json.dumps(settings).encode())
    for part in source.identity():
        digest.update(part)
    return digest.hexdigest()
