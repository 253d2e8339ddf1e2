"""Which files of a folder or archive are images, and the split and class of each."""

from __future__ import annotations

import posixpath
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from ditlab.data.source import printable
from ditlab.errors import UserError

EXTENSIONS = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff")
SPLIT_FOLDERS = {"train": ("train",), "test": ("test", "val", "validation")}
EXPECTED = "expected one subfolder of images per class, or images directly inside"


def image_name(name: str) -> str | None:
    """The cleaned relative name of an image file; None for other files, hidden files and names that lead outside."""
    clean = posixpath.normpath(name).lstrip("/")
    hidden = any(part.startswith(".") for part in clean.split("/"))
    return None if hidden or not clean.lower().endswith(EXTENSIONS) else clean


@dataclass(frozen=True)
class Layout:
    """The images of one split: full names are ``prefix + files[i]``; labels int64 (N,); class names in label order."""

    prefix: str
    files: tuple[str, ...]
    labels: np.ndarray
    names: tuple[str, ...]


def arrange(found: Iterable[str], split: str, where: str) -> Layout:
    """Find the images of a split and their classes.

    A single folder that contains only folders is entered. If every folder is named train, test, val or validation,
    the one of ``split`` is entered. Then each folder is a class with all images below it, or the images are directly
    inside and have no class. ``found`` are names from image_name; ``where`` is the folder's or archive's name, for messages.

    Raises a UserError if there are no images, no such split, or images next to class folders.
    """
    files = sorted(found)
    if not files:
        raise UserError(f"{where} contains no images; {EXPECTED} ({', '.join(EXTENSIONS)})")
    files, prefix, entered = _enter_split(files, split, where)
    if split != "train" and not entered:
        wanted = " or ".join(SPLIT_FOLDERS[split])
        raise UserError(f"{where} has no {split} split; expected a folder train and a folder {wanted} in it")
    loose = [file for file in files if "/" not in file]
    if loose and len(loose) < len(files):
        raise UserError(
            f"{where} contains {len(loose)} images next to its class folders (first: {printable(loose[0])}); "
            "move them into a class folder or remove them"
        )
    if loose:
        return Layout(prefix, tuple(files), np.zeros(len(files), np.int64), ())
    classes = [file.split("/", 1)[0] for file in files]
    names = sorted(set(classes))
    label_of = {name: label for label, name in enumerate(names)}
    labels = np.array([label_of[name] for name in classes], np.int64)
    return Layout(prefix, tuple(files), labels, tuple(printable(name) for name in names))


def _enter_split(files: list[str], split: str, where: str) -> tuple[list[str], str, bool]:
    """Files relative to the folder of the split, that folder, and whether there are splits at all."""
    known = {folder for folders in SPLIT_FOLDERS.values() for folder in folders}
    prefix = ""
    while all("/" in file for file in files):
        folders = sorted({file.split("/", 1)[0] for file in files})
        if all(folder.lower() in known for folder in folders):
            ranked = [folder for wanted in SPLIT_FOLDERS[split] for folder in folders if folder.lower() == wanted]
            if not ranked:
                raise UserError(f"{where} has no {split} split; it has {', '.join(folders)}")
            inner = [file.removeprefix(ranked[0] + "/") for file in files if file.startswith(ranked[0] + "/")]
            return inner, f"{prefix}{ranked[0]}/", True
        if len(folders) > 1 or any(file.count("/") == 1 for file in files):
            break
        files, prefix = [file.split("/", 1)[1] for file in files], f"{prefix}{folders[0]}/"
    return files, prefix, False
