"""DataConfig -> Dataset: pick the source by name, or by what the path is."""

from __future__ import annotations

from pathlib import Path

from ditlab.data.archive import ARCHIVE_SUFFIXES, open_archive
from ditlab.data.arrays import open_digits
from ditlab.data.config import DataConfig, check_config
from ditlab.data.dataset import Dataset
from ditlab.data.folder import FolderSource
from ditlab.data.idx import open_known
from ditlab.data.layout import EXPECTED, EXTENSIONS
from ditlab.data.parquet import ParquetSource, parquet_files
from ditlab.data.source import Source
from ditlab.errors import UserError


def open_data(config: DataConfig) -> Dataset:
    """List the images that ``config`` names and decode one to learn the shape; the others wait until they are read.

    Raises:
        UserError: a field is wrong, the data is missing or damaged, or no image can be decoded.
    """
    check_config(config)
    return Dataset(_open_source(config), config)


def _open_source(config: DataConfig) -> Source:
    if config.source == "digits":
        if config.path:
            raise UserError(f"digits takes no path ({config.path!r}); for your own images give --data.source folder")
        return open_digits(config.split)
    if config.source in ("fashion", "mnist"):
        return open_known(config.source, config.path, config.split)
    return _open_path(config)


def _open_path(config: DataConfig) -> Source:
    """Folder, archive and parquet by what the path is: whichever of the three names was given."""
    if not config.path:
        raise UserError(f"data source {config.source!r} needs a path; give --data.path with a folder or a file")
    path = Path(config.path).expanduser()
    name = path.name.lower()
    if path.is_dir():
        images_first = config.source != "parquet" and any(f.suffix.lower() in EXTENSIONS for f in path.rglob("*"))
        if not images_first and any(path.rglob("*.parquet")):
            return ParquetSource(str(path), parquet_files(path, config.split))
        return FolderSource(path, config.split)
    if not path.exists():
        raise UserError(f"{path} does not exist; {EXPECTED}, or give an archive or a .parquet file")
    if name.endswith(EXTENSIONS):
        raise UserError(f"{path} is one image; give the folder it lies in")
    if name.endswith(".parquet") or config.source == "parquet":
        return ParquetSource(str(path), parquet_files(path, config.split))
    if name.endswith(ARCHIVE_SUFFIXES) or config.source == "archive":
        return open_archive(path, config.split)
    raise UserError(f"{path} is neither a folder nor a known file; expected {', '.join(ARCHIVE_SUFFIXES)} or .parquet")
