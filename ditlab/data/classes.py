"""The class of each image: from a table next to the images, from folders, or from file names."""

from __future__ import annotations

import posixpath
import re
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from ditlab.data.captions import is_caption
from ditlab.data.metadata import Metadata, Row
from ditlab.data.source import printable
from ditlab.errors import UserError, nearest

COLUMNS = (  # of classes, the first that there is
    "label", "labels", "class", "class_name", "label_name", "category", "fine_label", "fine_labels", "target", "cls",
)  # fmt: skip
CAMERAS = (  # words before a number that are no classes
    "img", "image", "images", "dsc", "dscn", "dscf", "pxl", "photo", "pic", "picture", "frame", "screenshot", "vid", "gopr",
    "sample", "file",
)  # fmt: skip
Found = tuple[list[Any] | None, str]  # a class for each image, or None without classes, and a note


def find_classes(
    folders: Sequence[str], metadata: Metadata, label: str, caption: str = ""
) -> tuple[np.ndarray, tuple[str, ...], tuple[str, ...]]:
    """Labels int64 (N,), class names in label order, and notes.

    ``folders`` are the names of the images below the split, whose first folder may be the class. ``label`` names a column
    of the table, ``folder``, ``filename`` or ``none``; empty takes the first of: a table (metadata.jsonl, metadata.csv,
    dataset.json, .cls files), folders, file names like ``class_0001.png``. A column of captions, see ``is_caption``, is one
    of classes only if ``label`` names it.
    """
    where, in_folders = metadata.where, any("/" in name for name in folders)
    ways: dict[str, list[Callable[[], Found]]] = {
        "": [
            lambda: _of_table(metadata, label, in_folders, caption),
            lambda: _of_folders(folders, label, where),
            lambda: _of_file_names(folders, label),
        ]
    }
    ways |= {"none": [], "folder": ways[""][1:2], "filename": ways[""][2:]}
    notes = []
    for way in ways.get(label, ways[""][:1]):
        values, note = way()
        notes += [note] if note else []
        if values is not None:
            labels, names = encode_classes(values, where)
            return labels, names, tuple(notes)
    if label not in ("", "none"):
        raise UserError(
            f"{where} has no classes by --data.label {label}; give a column, folder, filename or none, or leave it out"
        )
    return np.zeros(len(folders), np.int64), (), tuple(notes)


def named_classes(values: list[Any], names: Sequence[str], where: str) -> tuple[np.ndarray, tuple[str, ...]]:
    """Labels int64 (N,) of values that are numbers of ``names``; classes without images keep their number.

    Raises a UserError as ``encode_classes`` does, and for a number that has no name.
    """
    _check_classes(values, where)
    if not all(isinstance(value, int) for value in values):
        return encode_classes(values, where)
    if max(values) >= len(names):
        raise UserError(f"{where} contains label {max(values)} but {len(names)} class names; repair the table")
    return np.array(values, np.int64), tuple(printable(unicodedata.normalize("NFC", name)) for name in names)


def encode_classes(values: list[Any], where: str) -> tuple[np.ndarray, tuple[str, ...]]:
    """Labels int64 (N,) of values of one kind, and their names in NFC: numbers in their order, others by name.

    Raises a UserError for lists, missing and hidden (-1) classes.
    """
    _check_classes(values, where)
    if all(isinstance(value, int) for value in values):
        classes: list[Any] = sorted(set(values))
    else:
        values = [unicodedata.normalize("NFC", str(value)) for value in values]
        classes = sorted(set(values))
    label_of = {value: label for label, value in enumerate(classes)}
    labels = np.array([label_of[value] for value in values], np.int64)
    return labels, tuple(printable(str(value)) for value in classes)


def _check_classes(values: list[Any], where: str) -> None:
    what, without = f"the classes of {where}", "--data.label none trains without classes"
    if any(isinstance(value, list | dict | tuple) for value in values):
        raise UserError(f"{what} are lists, several for an image; give a column with one for each, or {without}")
    missing = sum(value is None or value == "" for value in values)
    if missing:
        raise UserError(f"{what} are missing for {missing:,} of {len(values):,} images; complete them, or {without}")
    numbers = [value for value in values if isinstance(value, int)]
    if numbers and min(numbers) < 0:
        raise UserError(f"{what} are hidden ({min(numbers)}), as in a test split without answers; {without}")


def choose_column(columns: Mapping[str, Sequence[Any]], where: str, guess: bool = True) -> tuple[str, tuple[str, ...]]:
    """The column of classes among those of a table, empty if there is none, and notes.

    Columns whose names say so come first, then, with ``guess``, those with few values; names of classes come before
    numbers. A column with another whole number for every image is one of numbers of images.
    """
    known = [name for name in COLUMNS if name in columns]
    others = [name for name in columns if name not in COLUMNS] if guess else []
    for chosen, guessed in ((known, False), (others, True)):
        usable = [name for name in chosen if _is_class(columns[name], guessed)]
        usable.sort(key=lambda name: all(isinstance(value, int) for value in columns[name]))
        if usable:
            column = usable[0]
            said = f"classes from column {printable(column)} of {where} (--data.label none trains without)"
            return column, (said,) if guessed else ()
    listed = ", ".join(
        printable(name) + " (another whole number for every image)" * _numbers_images(values)
        for name, values in columns.items()
    )
    return "", (f"{where}: no column of classes among {listed}; --data.label COLUMN names one",) if columns else ()


def _is_class(values: Sequence[Any], guessed: bool) -> bool:
    """Whether a column may be one of classes; a guessed one has few values, all of them text or whole numbers."""
    if any(isinstance(value, list | dict) for value in values):
        return not guessed
    if _numbers_images(values):
        return False
    count = len(set(values))
    return not guessed or (2 <= count <= len(values) // 2 and all(isinstance(value, str | int) for value in values))


def _numbers_images(values: Sequence[Any]) -> bool:
    """Whether a column has another whole number for every image."""
    return len(values) > 2 and all(isinstance(value, int) for value in values) and len(set(values)) == len(values)


def _of_table(metadata: Metadata, label: str, in_folders: bool, caption: str) -> Found:
    rows, source = _rows(metadata, label, in_folders)
    if not source:
        return None, ""
    where = metadata.where
    if not any(rows):
        return None, f"{source} is not used: it names none of the images" if source != "dataset.json" else ""
    names = sorted({column for row in rows for column in row})
    if label and label not in names:
        raise UserError(f"{source} in {where} has no column {label!r}; {nearest(label, names)}")
    captioned = {name for name in names if is_caption(name, caption)}
    chosen = [label] if label else [name for name in names if name not in captioned]
    columns = {name: _numbers([row.get(name) for row in rows]) for name in chosen}
    column, notes = (label, ()) if label else choose_column(columns, source, guess=not captioned)
    if not column:
        return None, " ".join(notes)
    if all(value is None for value in columns[column]):
        return None, ""
    return columns[column], " ".join(notes) or f"classes from {source}" + f", column {column}" * (column != "label")


def _rows(metadata: Metadata, label: str, in_folders: bool) -> tuple[list[Row], str]:
    """The row of each image from the table or files next to the images, and what it is from, empty if there is none.

    The .json files of images in folders count only if ``label`` asks: downloads have them, and the folders are the classes.
    """
    rows, source = metadata.table
    if source:
        return [each[-1] if each else {} for each in metadata.of_images(rows)], source
    for kind in (".cls", ".json"):
        if (label or not in_folders or kind == ".cls") and any(found := metadata.sidecars(kind)):
            return found, f"{kind} files"
    return [], ""


def _numbers(values: list[Any]) -> list[Any]:
    """A CSV's whole numbers are text; a column of nothing else is one of numbers."""
    if all(isinstance(value, str) and re.fullmatch(r"-?\d+", value) for value in values):
        return [int(value) for value in values]
    return values


def _of_folders(folders: Sequence[str], label: str, where: str) -> Found:
    inside = ["/" in name for name in folders]
    if not any(inside):
        return None, ""
    if not all(inside):
        loose = [name for name in folders if "/" not in name]
        raise UserError(
            f"{where} contains {len(loose)} images next to its class folders (first: {printable(loose[0])}); "
            "move them into a class folder or remove them, or give --data.label none"
        )
    if not label and all(_in_thousands(name) for name in folders):
        return None, "folders of thousands are no classes"
    return [name.split("/", 1)[0] for name in folders], ""


def _in_thousands(name: str) -> bool:
    """Whether a file is in a folder of its number: img00001234.png in 00001 (EDM), 01234.png in 01000 (FFHQ)."""
    folder, number = name.split("/", 1)[0], re.search(r"(\d+)\D*$", posixpath.splitext(name)[0].rsplit("/", 1)[-1])
    if not number or not re.fullmatch(r"\d{4,}", folder):
        return False
    return int(folder) in (int(number[1]) // 1000, int(number[1]) // 1000 * 1000)


def _of_file_names(folders: Sequence[str], label: str) -> Found:
    stems = [posixpath.splitext(posixpath.basename(name))[0] for name in folders]
    found = [re.fullmatch(r"([^\W\d_][^_]*)_\d+", stem) for stem in stems]
    if not all(found):
        return None, ""
    classes = [match[1] for match in found if match]
    few = 2 <= len(set(classes)) <= len(classes) // 2 and not {name.lower() for name in classes} & set(CAMERAS)
    return (classes, "classes from file names (--data.label none trains without)") if few or label else (None, "")
