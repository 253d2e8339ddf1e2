"""Which files of a folder or archive are images, and the split, class and captions of each."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass

import numpy as np

from ditlab.data.captions import find_captions
from ditlab.data.classes import find_classes
from ditlab.data.listing import select
from ditlab.data.metadata import Metadata
from ditlab.data.source import Captions
from ditlab.data.splits import FALLBACKS, choose_split, split_in
from ditlab.errors import UserError

EXPECTED = "expected one subfolder of images per class, or images directly inside"
FORMATS = "PNG, JPEG, WebP, AVIF, GIF, BMP, TIFF or what else Pillow reads"


@dataclass(frozen=True)
class Layout:
    """The images of one split: full names are ``prefix + files[i]``; labels int64 (N,); class names in label order.

    ``notes`` are lines for the user: what was skipped, and where classes come from if not from folders.
    """

    prefix: str
    files: tuple[str, ...]
    labels: np.ndarray
    names: tuple[str, ...]
    notes: tuple[str, ...] = ()
    captions: Captions = None


def arrange(
    names: Collection[str], split: str, where: str, label: str = "", read: Callable[[str], bytes] = lambda name: b"",
    shards: Collection[str] = (), caption: str = "",
) -> Layout:  # fmt: skip
    """Find the images of a split, their classes and captions: ``choose_split``, ``find_classes``, ``find_captions``.

    ``names`` are clean names of all files, ``where`` is the folder's or archive's name, for messages, ``read`` gives the
    bytes of a file, ``shards`` are top folders that stand for files of many images and are no classes.

    Raises a UserError if there are no images, no such split, or classes or captions that cannot be used.
    """
    files = select(names, read)
    if not files.images:
        inside = f" ({files.notes[0]})" if files.notes else ""
        raise UserError(f"{where} contains no images{inside}; {EXPECTED}, in {FORMATS}")
    of = {shard: split_in(shard) for shard in shards}
    if any(of.values()):
        wanted = next((kind for kind in FALLBACKS[split] if kind in of.values()), None)
        inner, prefix, entered = [name for name in files.images if of.get(name.split("/", 1)[0]) == wanted], "", True
    else:
        inner, prefix, entered = choose_split(files.images, split, where, label == "folder")
    if (split != "train" and not entered) or not inner:
        raise UserError(
            f"{where} has no {split} split; expected a folder train and a folder {' or '.join(FALLBACKS[split])}"
        )
    inner = sorted(inner)
    folders = [name.split("/", 1)[1] if name.split("/", 1)[0] in shards else name for name in inner]
    images = [prefix + name for name in inner]
    metadata = Metadata(images, _table_first(files.tables, prefix), read, where)
    labels, classes, notes = find_classes(folders, metadata, label, caption)
    captions, more = find_captions(metadata, caption, label)
    skipped = len(files.images) - len(inner)
    others = (f"not used: {skipped:,} image{'s' * (skipped != 1)} of other splits",) if skipped else ()
    return Layout(prefix, tuple(inner), labels, classes, (*others, *files.notes, *notes, *more), captions)


def _table_first(tables: tuple[str, ...], prefix: str) -> list[str]:
    """Tables in the folder of the split before others, metadata before dataset.json."""
    return sorted(tables, key=lambda name: (not name.startswith(prefix), "dataset.json" in name, name))
