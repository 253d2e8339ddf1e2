"""The class of each image: from a table next to the images, from folders, or from file names."""

from __future__ import annotations

import csv
import json
import posixpath
import re
import unicodedata
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from ditlab.data.listing import ending
from ditlab.data.source import printable
from ditlab.errors import UserError, nearest

COLUMNS = ("label", "labels", "class", "class_name", "category")  # of classes, the first that there is
CAMERAS = (  # words before a number that are no classes
    "img", "image", "images", "dsc", "dscn", "dscf", "pxl", "photo", "pic", "picture", "frame", "screenshot", "vid", "gopr",
    "sample", "file",
)  # fmt: skip
Read = Callable[[str], bytes]
Found = tuple[list[Any] | None, str]  # a class for each image, or None without classes, and a note


def find_classes(
    images: Sequence[str], folders: Sequence[str], tables: Sequence[str], read: Read, label: str, where: str
) -> tuple[np.ndarray, tuple[str, ...], tuple[str, ...]]:
    """Labels int64 (N,), class names in label order, and notes.

    ``images`` are full names, ``folders`` the names below the split, whose first folder may be the class. ``label`` names a
    column of the table, ``folder``, ``filename`` or ``none``; empty takes the first of: a table (metadata.jsonl,
    metadata.csv, dataset.json, .cls files), folders, file names like ``class_0001.png``.
    """
    ways: dict[str, list[Callable[[], Found]]] = {
        "": [
            lambda: _of_table(images, tables, read, label, where),
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
    return np.zeros(len(images), np.int64), (), tuple(notes)


def encode_classes(values: list[Any], where: str) -> tuple[np.ndarray, tuple[str, ...]]:
    """Labels int64 (N,) of values of one kind, and their names in NFC: numbers in their order, others by name.

    Raises a UserError for lists, missing and hidden (-1) classes.
    """
    what, without = f"the classes of {where}", "--data.label none trains without classes"
    if any(isinstance(value, list | dict | tuple) for value in values):
        raise UserError(f"{what} are lists, several for an image; give a column with one for each, or {without}")
    missing = sum(value is None or value == "" for value in values)
    if missing:
        raise UserError(f"{what} are missing for {missing:,} of {len(values):,} images; complete them, or {without}")
    if all(isinstance(value, int) for value in values):
        if min(values) < 0:
            raise UserError(f"{what} are hidden ({min(values)}), as in a test split without answers; {without}")
        classes: list[Any] = sorted(set(values))
    else:
        values = [unicodedata.normalize("NFC", str(value)) for value in values]
        classes = sorted(set(values))
    label_of = {value: label for label, value in enumerate(classes)}
    labels = np.array([label_of[value] for value in values], np.int64)
    return labels, tuple(printable(str(value)) for value in classes)


def _of_table(images: Sequence[str], tables: Sequence[str], read: Read, label: str, where: str) -> Found:
    rows, source = _rows(tables, read, where)
    if not rows:
        return None, ""
    columns = sorted({column for row in rows.values() for column in row})
    column = label or next((name for name in COLUMNS if name in columns), "")
    if column not in columns:
        if label:
            raise UserError(f"{source} in {where} has no column {label!r}; {nearest(label, columns)}")
        return (
            None,
            f"{source} is not used: no column of classes among {', '.join(columns)}; --data.label COLUMN names one",
        )
    found = [rows.get(image, {}).get(column) for image in images]
    if all(value is None for value in found):
        return None, f"{source} is not used: it names none of the images" if source != "dataset.json" else ""
    numbers = all(isinstance(value, int) for value in found)
    if not label and numbers and len(found) > 2 and len(set(found)) == len(found):
        return None, f"{source} is not used: column {column} has another whole number for every image"
    return found, f"classes from {source}, column {column}" if column != "label" else f"classes from {source}"


def _rows(tables: Sequence[str], read: Read, where: str) -> tuple[dict[str, dict[str, Any]], str]:
    """By image the columns of the table that is there, and its name."""
    rows, source = dict[str, dict[str, Any]](), ""
    stems = {name.removesuffix(".cls"): name for name in tables if ending(name) == ".cls"}
    for table in tables:
        folder, name = posixpath.split(table)
        if source and name != source:  # metadata.jsonl may be in several folders
            break
        try:
            if name in ("metadata.jsonl", "metadata.csv"):
                text = read(table).decode("utf-8-sig")
                lines = (
                    csv.DictReader(text.splitlines()) if name.endswith("csv") else map(json.loads, text.splitlines())
                )
                for row in lines:
                    file = row.pop("file_name")
                    rows[posixpath.normpath(posixpath.join(folder, file))] = row
            elif name == "dataset.json":
                for file, value in json.loads(read(table)).get("labels") or ():
                    rows[posixpath.normpath(posixpath.join(folder, file))] = {"label": value}
            else:
                continue
        except (ValueError, KeyError, TypeError, AttributeError, csv.Error) as error:
            reason = "no column file_name" if isinstance(error, KeyError) else str(error)
            raise UserError(
                f"{table} in {where} cannot be read ({reason}); repair it, or give --data.label folder"
            ) from error
        source = name
    if rows:
        return _numbers(rows), source
    if stems:
        return {stem: {"label": _cls(read(name))} for stem, name in stems.items()}, ".cls files"
    return {}, ""


def _numbers(rows: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """A CSV's whole numbers are text; a column of nothing else is one of numbers."""
    columns = {column for row in rows.values() for column in row}
    for column in columns:
        values = [row.get(column) for row in rows.values()]
        if all(isinstance(value, str) and re.fullmatch(r"-?\d+", value) for value in values):
            for row in rows.values():
                row[column] = int(row[column])
    return rows


def _cls(content: bytes) -> int | str:
    text = content.decode("utf-8", "replace").strip()
    return int(text) if re.fullmatch(r"-?\d+", text) else text


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
