"""Parquet files in the layout of the Hugging Face hub: an image column of encoded bytes and a label column."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ditlab.data.decode import DecodeError
from ditlab.data.source import MEMORY_LIMIT, EncodedSource, stamps_of
from ditlab.data.splits import FALLBACKS, split_in
from ditlab.errors import UserError

if TYPE_CHECKING:
    import pyarrow
    import pyarrow.parquet

_LABEL_COLUMNS = ("label", "labels", "fine_label")


class ParquetSource(EncodedSource):
    """The encoded images of parquet files of one schema, in memory; ``names`` replaces the class names stored there.

    Raises a UserError if pyarrow is not installed, a file is damaged or has no image column, labels are not usable, or the
    images exceed the memory limit.
    """

    def __init__(self, title: str, paths: Sequence[Path], names: tuple[str, ...] | None = None) -> None:
        try:
            import pyarrow.compute
            import pyarrow.parquet
        except ImportError as error:
            raise UserError(f"{title} needs the package pyarrow; pip install 'ditlab[formats]'") from error
        try:
            schema = pyarrow.parquet.read_schema(paths[0])
            image, label = _image_column(schema, title), _label_column(schema)
            _check_size(title, [pyarrow.parquet.read_metadata(path) for path in paths], image)
            columns = [image] if label is None else [image, label]
            tables = [pyarrow.parquet.read_table(path, columns=columns) for path in paths]
            table = pyarrow.concat_tables(tables)
        except (pyarrow.ArrowException, OSError) as error:
            reason = str(error).split("\n")[0].rstrip(".")
            raise UserError(f"{title} cannot be read as parquet ({reason}); give whole .parquet files") from error
        column = table.column(image)
        files = [f"{path.name} row {row}" for path, part in zip(paths, tables, strict=True) for row in range(len(part))]
        if pyarrow.types.is_struct(column.type):
            if column.type.get_field_index("path") >= 0:
                stored = _field(column, "path").to_pylist()
                files = [f"{row} ({path})" if path else row for row, path in zip(files, stored, strict=True)]
            column = _field(column, "bytes")
        if not files:
            raise UserError(f"{title} has no rows; give a parquet file with images")
        self._encoded = column
        sizes = [row.as_buffer().size if row.is_valid else 0 for row in column]
        found, stored_names = np.zeros(len(files), np.int64), ()
        if label is not None:
            values, names = table.column(label).to_pylist(), names or _stored_names(schema, label)
            found, stored_names = _labels(values, names, title, label)
        stamps = stamps_of(*paths, *(path.parent for path in paths))
        super().__init__(title, files, sizes, found, stored_names, stamps)

    def encoded(self, index: int) -> bytes:
        """The row's image bytes."""
        content = self._encoded[index].as_py()
        if content is None:
            raise DecodeError("the row contains no image bytes")
        return content


def parquet_files(path: Path, split: str) -> list[Path]:
    """The parquet files of a split: a file itself, or those in a folder whose names or folders name the split.

    If none names a split (``train-00000-of-00001.parquet``, ``default/train/0000.parquet``), all files are train.
    """
    files = [path] if path.is_file() else sorted(path.rglob("*.parquet"))
    of = {file: split_in(file.name if path.is_file() else str(file.relative_to(path))) for file in files}
    wanted = next((kind for kind in FALLBACKS[split] if kind in of.values()), None)
    chosen = [file for file in files if wanted and of[file] == wanted]
    if split == "train" and not chosen and (path.is_file() or not any(of.values())):
        chosen = files
    if not chosen:
        listed = ", ".join(file.name for file in files[:3])
        raise UserError(f"{path} has no {split} split ({listed}); expected files named {split}-*.parquet")
    return chosen


def _field(column: pyarrow.ChunkedArray, name: str) -> pyarrow.ChunkedArray:
    """One field of a struct column; null where the struct is null."""
    import pyarrow.compute

    return pyarrow.compute.struct_field(column, name)  # pyright: ignore[reportAttributeAccessIssue] - made at import


def _is_bytes(kind: pyarrow.DataType) -> bool:
    import pyarrow

    if pyarrow.types.is_struct(kind):
        index = kind.get_field_index("bytes")
        return index >= 0 and _is_bytes(kind.field(index).type)
    return pyarrow.types.is_binary(kind) or pyarrow.types.is_large_binary(kind)


def _image_column(schema: pyarrow.Schema, title: str) -> str:
    usable = [field.name for field in schema if _is_bytes(field.type)]
    if not usable:
        missing = f"no column of encoded images (columns: {', '.join(schema.names)})"
        raise UserError(f"{title} has {missing}; expected a column image that contains bytes")
    return "image" if "image" in usable else usable[0]


def _label_column(schema: pyarrow.Schema) -> str | None:
    import pyarrow

    integers = [field.name for field in schema if pyarrow.types.is_integer(field.type)]
    known = [name for name in _LABEL_COLUMNS if name in schema.names]
    return next(iter(known + integers), None)


def _stored_names(schema: pyarrow.Schema, column: str) -> tuple[str, ...] | None:
    """Class names of the hub's ClassLabel feature, stored as JSON in the schema's metadata."""
    try:
        features: Any = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
        return tuple(str(name) for name in features[column]["names"])
    except (KeyError, TypeError, ValueError):
        return None


def _labels(
    values: list[Any], names: tuple[str, ...] | None, title: str, column: str
) -> tuple[np.ndarray, tuple[str, ...]]:
    """Labels int64 (N,) and names; without names, the classes are the sorted values of the column."""
    if any(value is None or isinstance(value, list | dict) for value in values):
        raise UserError(f"column {column} of {title} does not have one label per image; give one for each row")
    if names is None or not all(isinstance(value, int) for value in values):
        classes = sorted(set(values))
        label_of = {value: label for label, value in enumerate(classes)}
        return np.array([label_of[value] for value in values], np.int64), tuple(str(value) for value in classes)
    labels = np.array(values, np.int64)
    if labels.min() < 0 or labels.max() >= len(names):
        wrong = labels.min() if labels.min() < 0 else labels.max()
        allowed = f"{len(names)} class names allow 0 to {len(names) - 1}"
        raise UserError(f"column {column} of {title} contains label {wrong}; its {allowed}")
    return labels, names


def _check_size(title: str, files: list[pyarrow.parquet.FileMetaData], column: str) -> None:
    groups = [metadata.row_group(index) for metadata in files for index in range(metadata.num_row_groups)]
    parts = [group.column(index) for group in groups for index in range(group.num_columns)]
    total = sum(part.total_uncompressed_size for part in parts if part.path_in_schema.split(".")[0] == column)
    if total > MEMORY_LIMIT:
        sizes = f"{total / 2**30:.1f} GiB of images, more than {MEMORY_LIMIT / 2**30:g}"
        raise UserError(f"{title} contains {sizes}; unpack it into a folder")
