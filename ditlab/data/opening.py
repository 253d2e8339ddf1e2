"""Open the data set of a DataConfig."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

from ditlab.data.archive import ARCHIVE_SUFFIXES, open_archive
from ditlab.data.arrays import open_digits
from ditlab.data.bouncing import open_bouncing
from ditlab.data.config import DataConfig, check_config, target_size
from ditlab.data.dataset import DataInfo, Dataset
from ditlab.data.emoji import open_emoji
from ditlab.data.folder import FolderSource
from ditlab.data.idx import KNOWN, open_known
from ditlab.data.layout import EXPECTED
from ditlab.data.listing import ending, extensions
from ditlab.data.remote import local_copy
from ditlab.data.scenes import open_scenes
from ditlab.data.source import Once, Source, call
from ditlab.data.tables import BUILDERS, open_table, tables_in
from ditlab.errors import UserError, nearest
from ditlab.runtime.files import is_url


def open_data(config: DataConfig, once: Once = call, info: DataInfo | None = None) -> Dataset:
    """List the images of ``config`` and decode one for its shape; the others are decoded when they are read.

    With ``once`` = ``Processes.broadcast_from_main``, one of several processes lists the images. With ``info``, the
    description from ``read_index``, nothing is listed until it is needed, and each process lists for itself. Raises a
    UserError if a field is wrong, the data is missing or damaged, or no image can be decoded.
    """
    check_config(config)
    if config.source not in SOURCES:
        raise UserError(f"data source {config.source!r} is not known; {nearest(config.source, SOURCES)}")
    return Dataset(partial(SOURCES[config.source], config, once if info is None else call), config, info)


def _open_digits(config: DataConfig, once: Once) -> Source:
    del once  # nothing is listed
    if config.path:
        raise UserError(f"digits takes no path ({config.path!r}); for your own images give --data.source folder")
    return open_digits(config.split)


def _open_known(config: DataConfig, once: Once) -> Source:
    del once  # nothing is listed
    return open_known(config.source, config.path, config.split)


def _refuse_for_rendered(config: DataConfig) -> None:
    if config.path:
        raise UserError(
            f"{config.source} takes no path ({config.path!r}); for your own images give --data.source folder"
        )
    if config.flip:
        raise UserError(f"{config.source} cannot be mirrored, its captions name left and right; give --no-data.flip")


def _open_scenes(config: DataConfig, once: Once) -> Source:
    del once  # nothing is listed
    _refuse_for_rendered(config)
    return open_scenes(config.split, target_size(config), config.caption)


def _open_bouncing(config: DataConfig, once: Once) -> Source:
    del once  # nothing is listed
    _refuse_for_rendered(config)
    return open_bouncing(config.split, target_size(config), config.frames)


def _open_path(config: DataConfig, once: Once) -> Source:
    """A folder, an archive or a table: what the path is decides, whichever of the names of a source was given."""
    if not config.path:
        raise UserError(f"data source {config.source!r} needs a path; give --data.path with a folder, a file or a URL")
    path = local_copy(config.path, once) if is_url(config.path) else Path(config.path).expanduser()
    name = path.name.lower()
    if path.is_dir():
        if once(lambda: _is_table(path, config.source)):
            return open_table(path, config.split, config.image, config.label, once=once, caption=config.caption)
        return FolderSource(path, config.split, config.label, once, config.caption)
    if not path.exists():
        raise UserError(f"{path} does not exist; {EXPECTED}, or give an archive or a .parquet file")
    if ending(name) in extensions():
        raise UserError(f"{path} is one image; give the folder that contains it")
    if ending(name) in BUILDERS or config.source == "parquet":
        return open_table(path, config.split, config.image, config.label, once=once, caption=config.caption)
    if name.endswith(ARCHIVE_SUFFIXES) or config.source == "archive":
        return open_archive(path, config.split, config.label, once, config.caption)
    known = ", ".join((*ARCHIVE_SUFFIXES, *BUILDERS))
    raise UserError(f"{path} is neither a folder nor a known file; expected {known}")


def _is_table(folder: Path, source: str) -> bool:
    """Whether tables are what to read in a folder: there are some, larger than the images next to them."""
    tables = sum(file.stat().st_size for file in tables_in(folder))
    if not tables or source == "parquet":
        return tables > 0
    return tables > sum(file.stat().st_size for file in folder.rglob("*") if ending(file.name) in extensions())


def _open_given(config: DataConfig, once: Once) -> Source:
    del once  # nothing is stored
    if config.split != "train":
        raise UserError(f"images given in Python have no {config.split} split")
    raise UserError(
        "the images were given in Python and are not stored: give them again, ditlab.train(recipe, data=...)"
    )


SOURCES: dict[str, Callable[[DataConfig, Once], Source]] = {
    "digits": _open_digits,
    "scenes": _open_scenes,
    "bouncing": _open_bouncing,
    **dict.fromkeys(KNOWN, _open_known),
    "emoji": open_emoji,
    **dict.fromkeys(("folder", "archive", "parquet"), _open_path),
    "given": _open_given,
}
