"""What is known of a data set before anything is trained: classes, channels and sizes, in lines for the user."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from ditlab.data.captions import caption_lines
from ditlab.data.config import DataConfig, target_size
from ditlab.data.decode import DecodeError
from ditlab.data.source import Captions, Source
from ditlab.errors import UserError

LOOKED_AT = 256  # images whose headers are read
_THREADS = 8
_LISTED = 12  # classes shown
_IMBALANCE = 10
_KINDS = {1: "grayscale", 3: "RGB", 4: "RGBA"}


@dataclass(frozen=True)
class Look:
    """Shapes (H, W, C) of the images looked at, evenly spaced over the set, by their row in the source."""

    shapes: dict[int, tuple[int, int, int]]

    @property
    def channels(self) -> int:
        """The channels that all have, 3 where they differ, 0 if no image could be read."""
        present = {channels for _, _, channels in self.shapes.values()}
        return present.pop() if len(present) == 1 else 3 if present else 0


def look_at(source: Source, rows: np.ndarray) -> Look:
    """Read the headers of up to ``LOOKED_AT`` of the images ``rows`` (M,) of a source."""
    chosen = [int(row) for row in rows[np.unique(np.linspace(0, len(rows) - 1, LOOKED_AT).astype(int))]]
    if source.threaded:
        with ThreadPoolExecutor(_THREADS, "look") as pool:
            found = list(pool.map(source.header, chosen))
    else:
        found = [source.header(row) for row in chosen]
    return Look({row: shape for row, shape in zip(chosen, found, strict=True) if shape is not None})


def check_sizes(look: Look, source: Source, config: DataConfig) -> None:
    """Raise a UserError where no size is given and the images looked at have several."""
    if target_size(config) is not None or not look.shapes:
        return
    (first, shape), *others = look.shapes.items()
    for row, other in others:
        if other[:2] != shape[:2] and _decodes(source, first) and _decodes(source, row):
            raise UserError(
                f"{source.name(row)} has size {by(other[:2])} (HxW), {source.name(first)} has {by(shape[:2])}; "
                "give --data.size to bring all images to one size"
            )


def _decodes(source: Source, row: int) -> bool:
    try:
        source.decode(row, 0)
    except DecodeError:  # it is skipped, so its size does not count
        return False
    return True


def summary(source: Source, labels: np.ndarray, captions: Captions, look: Look, config: DataConfig) -> tuple[str, ...]:
    """Lines for the user: classes and captions with their counts, channels and sizes, and the source's notes."""
    lines = [*_class_lines(source.names, np.bincount(labels, minlength=len(source.names)))]
    if look.shapes:
        lines.append(_image_line(look, config))
    return (*lines, *caption_lines(captions), *source.notes)


def _class_lines(names: Sequence[str], counts: np.ndarray) -> list[str]:
    if not names:
        return []
    shown = ", ".join(f"{name} {count:,}" for name, count in list(zip(names, counts, strict=True))[:_LISTED])
    rest = len(names) - _LISTED
    present = counts[counts > 0]
    more = f", and {rest:,} more ({present.min():,} to {present.max():,} images each)" if rest > 0 else ""
    lines = [f"classes: {shown}{more}"]
    empty = [name for name, count in zip(names, counts, strict=True) if not count]
    if empty:
        listed = ", ".join(empty[:_LISTED]) + ", ..." * (len(empty) > _LISTED)
        lines.append(f"without images, never sampled: {listed}")
    most, least = int(counts.argmax()), int(np.where(counts > 0, counts, counts.max() + 1).argmin())
    if counts[most] >= _IMBALANCE * counts[least]:
        times = counts[most] / counts[least]
        lines.append(f"imbalance: {names[most]} has {times:.0f} times as many images as {names[least]}")
    return lines


def _image_line(look: Look, config: DataConfig) -> str:
    kinds = Counter(channels for _, _, channels in look.shapes.values())
    chosen = config.channels or look.channels
    channels = _KINDS.get(chosen, f"{chosen} channels")
    others = [f"{count} {_KINDS.get(kind, kind)}" for kind, count in kinds.most_common() if kind != chosen]
    if others:
        channels += f" (of {len(look.shapes)} images looked at, {', '.join(others)})"
    sides = np.array([shape[:2] for shape in look.shapes.values()])
    smallest, largest = (sides[getattr(sides.prod(1), how)()] for how in ("argmin", "argmax"))
    size = by(smallest) if (sides == sides[0]).all() else f"{by(smallest)} to {by(largest)}"
    target = target_size(config)
    fitted = ""
    if target is not None and (sides != np.array(target)).any():
        fitted = f", {'cropped' if config.fit == 'crop' else 'padded'} to {by(target)}"
        if config.fit == "crop" and (small := int((sides < np.array(target)).any(1).sum())):
            fitted += f" ({small} of {len(sides)} enlarged)"
    return f"images: {channels}, {size} (HxW){fitted}"


def by(size: Sequence[int] | np.ndarray) -> str:
    """A size as text: 32x48."""
    return "x".join(map(str, size))
