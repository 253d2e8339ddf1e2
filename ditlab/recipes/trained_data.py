"""The images that a run is trained on, as ``data.json`` in its folder: a changed data set is named as that."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

from ditlab.data import DataInfo
from ditlab.errors import UserError
from ditlab.runtime import files

DATA = "data.json"
_LISTED = 5
RESTORE = "restore them, or choose another --out"


def save_data(info: DataInfo, folder: Path) -> None:
    """Write the description of the images into a run folder; raises UserError if it cannot be written."""
    files.write_file(folder / DATA, json.dumps(asdict(info), indent=2) + "\n")


def refuse_other_data(info: DataInfo, folder: Path, captions: bool = False, remedy: str = RESTORE) -> None:
    """Raise a UserError, which names the differences, if a run folder has been trained on other images.

    The same images at another path are the same. A run of a version before 0.3 has no description. With ``captions``, which
    a network of labels does not read, other captions are refused too.
    """
    try:
        there = json.loads((folder / DATA).read_text())
        same = there["fingerprint"] == info.fingerprint
        if same and not (captions and there["captions"] != info.captions):
            return
        differences = ["their captions differ"] if same else _differences(there, info)
    except FileNotFoundError:
        return
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{folder / DATA} cannot be read ({error}); delete it to train on {info.title}") from error
    raise UserError(
        f"the images of {info.title} are not those that {folder} was trained on ({'; '.join(differences)}); {remedy}"
    )


def _differences(there: dict, info: DataInfo) -> list[str]:
    found = []
    for what, names in (
        ("new", [name for name in info.names if name not in there["names"]]),
        ("missing", [name for name in there["names"] if name not in info.names]),
    ):
        if names:
            listed = ", ".join(names[:_LISTED]) + ", ..." * (len(names) > _LISTED)
            found.append(f"class {listed} is {what}" if len(names) == 1 else f"classes {listed} are {what}")
    if there["count"] != info.count:
        found.append(f"{there['count']:,} images there, {info.count:,} here")
    shapes = ["x".join(map(str, shape)) for shape in (there["shape"], info.shape)]
    if shapes[0] != shapes[1]:
        found.append(f"of {shapes[0]} there, {shapes[1]} here")
    return found or ["their pixels, names, sizes or labels differ"]
