"""An index of a data set: what a start needs to know of it, valid while its folders and files are unchanged on disk.

An index lets a run with a finished latent cache start without listing the images. It is valid for one DataConfig (except
``flip``, which changes no image) and while the source's folders and files keep their modification time and size: adding,
removing or renaming an image changes its folder, and files that tell classes and captions have stamps of their own. An image
edited in place is not noticed; ``ditlab encode`` lists all files.
"""

from __future__ import annotations

import json
import os
from dataclasses import asdict
from pathlib import Path

from ditlab.data.config import DataConfig
from ditlab.data.dataset import DataInfo, Dataset
from ditlab.data.source import stamp
from ditlab.runtime import files


def write_index(path: Path, dataset: Dataset) -> None:
    """Write the index of a data set, as its source was when it was opened."""
    content = {"config": _key(dataset.config), "stamps": dataset.source.stamps, "info": asdict(dataset.info)}
    files.write_file(path, json.dumps(content) + "\n")


def read_index(path: Path, config: DataConfig) -> DataInfo | None:
    """The description of the data set of ``config``; None without an index, or if the index is not valid any more."""
    try:
        content = json.loads(path.read_text())
        if content["config"] != _key(config) or any(stamp(name) != old for name, old in content["stamps"].items()):
            return None
        info = content["info"]
        lists = {name: tuple(info[name]) for name in ("shape", "names", "counts", "notes")}
        return DataInfo(**{**info, **lists})
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def _key(config: DataConfig) -> dict[str, object]:
    fields = asdict(config)
    del fields["flip"]
    path = os.path.abspath(Path(config.path).expanduser()) if config.path else ""  # noqa: PTH100 - does not look at the disk
    return json.loads(json.dumps({**fields, "path": path}))
