"""Which images belong to a split, by the names of folders, files or shards."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import PurePosixPath

from ditlab.data.source import printable
from ditlab.errors import UserError

WORDS = {
    "train": ("train", "training"),
    "valid": ("valid", "val", "validation", "dev"),
    "test": ("test", "testing", "eval", "evaluation"),
}
FALLBACKS = {"train": ("train",), "valid": ("valid",), "test": ("test", "valid")}
"""The splits that answer for a split, the first that there is."""


def split_named(word: str) -> str | None:
    """The split of which ``word`` is a name, in any case."""
    return next((split for split, words in WORDS.items() if word.lower() in words), None)


def split_in(name: str) -> str | None:
    """The split named in a file's name (``train-00000-of-00004.parquet``), else by a folder it is in."""
    path = PurePosixPath(name)
    for part in (path.stem, *reversed(path.parts[:-1])):
        found = [split for word in re.split(r"[^A-Za-z0-9]+", part) if (split := split_named(word))]
        if found:
            return found[0]
    return None


def choose_split(
    files: Sequence[str], split: str, where: str, folders_are_classes: bool = False
) -> tuple[list[str], str, bool]:
    """Names of the images of a split relative to a folder, that folder, and whether there are splits at all.

    A single folder that contains only folders is entered. If every folder names a split, that of ``split`` is entered;
    otherwise, if every file names one, those of ``split`` are chosen. Raises a UserError for a folder next to a split's that
    names none, unless ``folders_are_classes``, and if the split is missing.
    """
    files, prefix = list(files), ""
    while files and all("/" in file for file in files):
        folders = sorted({file.split("/", 1)[0] for file in files})
        of = {folder: split_named(folder) for folder in folders}
        if all(of.values()):
            wanted = next((kind for kind in FALLBACKS[split] if kind in of.values()), None)
            if wanted is None:
                raise UserError(f"{where} has no {split} split; it has {', '.join(folders)}")
            chosen, *more = (f"{folder}/" for folder in folders if of[folder] == wanted)
            if more:
                raise UserError(f"{where} has two folders of one split, {chosen} and {more[0]}; give the path of one")
            return [file.removeprefix(chosen) for file in files if file.startswith(chosen)], prefix + chosen, True
        if not folders_are_classes and any(of.values()):
            _ask(files, of, where)
        if len(folders) > 1 or any(file.count("/") == 1 for file in files):
            break
        files, prefix = [file.split("/", 1)[1] for file in files], f"{prefix}{folders[0]}/"
    named = [split_named(re.split(r"[^A-Za-z0-9]", PurePosixPath(file).name, maxsplit=1)[0]) for file in files]
    if all(named) and "train" in named and len(set(named)) > 1:
        wanted = next((kind for kind in FALLBACKS[split] if kind in named), None)
        if wanted is None:
            raise UserError(f"{where} has no {split} split; its files name {', '.join(sorted(set(map(str, named))))}")
        return [file for file, name in zip(files, named, strict=True) if name == wanted], prefix, True
    return files, prefix, False


def _ask(files: list[str], of: dict[str, str | None], where: str) -> None:
    """Raise a UserError where some folders name splits and some do not, unless one of many classes has the name of a split."""
    named = [folder for folder in of if of[folder]]
    others = [folder for folder in of if not of[folder]]
    flat = all(file.count("/") == 1 for file in files)
    if flat and len(named) == 1 and len(others) > 1:
        return
    one, other = printable(named[0]), printable(others[0])
    raise UserError(
        f"{where} has a folder {one}, a split, next to {other}, which is none: give --data.path {where}/{one} to use the split "
        "alone, or --data.label folder if both are classes"
    )
