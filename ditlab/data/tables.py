"""Tables of encoded images, read with Hugging Face datasets: parquet and arrow files, and saved datasets."""

from __future__ import annotations

import os
from collections.abc import Sequence
from logging import CRITICAL
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ditlab.data.captions import caption_columns, captions_of, is_caption
from ditlab.data.classes import COLUMNS, choose_column, encode_classes, named_classes
from ditlab.data.decode import DecodeError
from ditlab.data.source import IMAGE_COLUMNS, Captions, EncodedSource, Once, call, printable, stamps_of
from ditlab.data.splits import FALLBACKS, split_in, split_named
from ditlab.errors import UserError, nearest

if TYPE_CHECKING:
    import datasets
    import pyarrow

BUILDERS = {".parquet": "parquet", ".arrow": "arrow"}


class TableSource(EncodedSource):
    """Rows of a Hugging Face dataset: a column of images, by ``choose_column`` one of classes, and one of captions.

    ``names`` replaces the class names stored with the table. ``image``, ``label`` and ``caption`` name the columns, see
    DataConfig. Raises a UserError if there is no column of images, or the classes or captions cannot be used.
    """

    def __init__(
        self, title: str, table: datasets.Dataset, paths: Sequence[Path], image: str = "", label: str = "",
        names: tuple[str, ...] | None = None, caption: str = "",
    ) -> None:  # fmt: skip
        import datasets
        import pyarrow.compute as compute

        if not len(table):
            raise UserError(f"{title} has no rows; give a table with images")
        column, note = _image_column(table.features, image, title)
        values, stored, more = _classes(table, column, label, title, caption)
        captions, said = _captions(table, caption, label, title)
        if values is None:
            labels, classes = np.zeros(len(table), np.int64), ()
        elif names or stored:
            labels, classes = named_classes(values, names or stored or (), title)
        else:
            labels, classes = encode_classes(values, title)
        encoded = table.cast_column(column, datasets.Image(decode=False)).data.column(column)
        field: Any = getattr(compute, "struct_field")  # noqa: B009 - made when it is imported
        self._bytes, self._paths = field(encoded, "bytes"), field(encoded, "path")
        self._folder = paths[0].parent
        sizes = getattr(compute, "binary_length")(self._bytes).fill_null(0).to_numpy()  # noqa: B009
        stored_paths = [Path(path).name if path else "" for path in self._paths.to_pylist()]
        files = [f"row {row}" + f" ({path})" * bool(path) for row, path in enumerate(stored_paths)]
        notes = tuple(line for line in (note, *more, said) if line)
        super().__init__(title, files, sizes, labels, classes, stamps_of(*paths), notes, captions)

    def encoded(self, index: int) -> bytes:
        """The row's image bytes, or those of the file whose path it contains."""
        content = self._bytes[index].as_py()
        if content is None:
            path = self._paths[index].as_py()
            if not path:
                raise DecodeError("the row contains no image bytes")
            try:
                return (self._folder / path).read_bytes()
            except OSError as error:
                raise DecodeError(f"{error.strerror or error}: {path}") from error
        return content


def open_table(
    path: Path, split: str, image: str = "", label: str = "", names: tuple[str, ...] | None = None, title: str = "",
    once: Once = call, caption: str = "",
) -> TableSource:  # fmt: skip
    """The rows of a split of a parquet or arrow file, of a folder of them, or of a dataset saved with ``save_to_disk``.

    datasets keeps a copy that it can read in any order in its cache (HF_DATASETS_CACHE). Raises a UserError if it is not
    installed, a file is damaged, or the split is missing.
    """
    title = title or str(path)
    try:
        import datasets
    except ImportError as error:
        raise UserError(f"{title} needs the package datasets; pip install 'ditlab[data]'") from error
    datasets.disable_progress_bars()
    datasets.logging.set_verbosity(CRITICAL)  # the error below reports a failure
    saved = saved_splits(path)
    files = [saved[_wanted(saved, split, title)]] if saved else table_files(path, split)

    def read() -> datasets.Dataset:
        if saved:
            return datasets.load_from_disk(str(files[0]))  # pyright: ignore[reportReturnType] - a folder of one split
        builder, chosen = BUILDERS[files[0].suffix.lower()], [str(file) for file in files if _has_rows(file)]
        if not chosen:
            raise UserError(f"{title} has no rows; give a table with images")
        return datasets.load_dataset(builder, data_files={"train": chosen}, split="train")  # pyright: ignore

    try:
        once(lambda: len(read()))  # one process writes the cache
        table = read()
    except UserError:
        raise
    except Exception as error:  # of datasets, pyarrow or the disk: there is no common base
        cause: BaseException = error
        while cause.__cause__ is not None:
            cause = cause.__cause__
        reason = (str(cause).strip() or type(cause).__name__).split("\n")[0].rstrip(".")
        raise UserError(f"{title} cannot be read as a table ({reason}); give whole .parquet or .arrow files") from error
    return TableSource(title, table, files, image, label, names, caption)


def _has_rows(file: Path) -> bool:
    """Whether a file has rows: the builder of parquet cannot read one without."""
    import pyarrow.parquet

    return file.suffix.lower() != ".parquet" or pyarrow.parquet.read_metadata(file).num_rows > 0


def saved_splits(path: Path) -> dict[str, Path]:
    """Folder of each split of a dataset saved with ``save_to_disk``; empty if ``path`` is none."""
    if (path / "dataset_dict.json").is_file():
        folders = (file.parent for file in path.glob("*/state.json"))
        return {split_named(folder.name) or folder.name: folder for folder in folders}
    return {"train": path} if (path / "state.json").is_file() and (path / "dataset_info.json").is_file() else {}


def _wanted(splits: dict[str, Path], split: str, title: str) -> str:
    wanted = next((kind for kind in FALLBACKS[split] if kind in splits), None)
    if wanted is None and split == "train" and len(splits) == 1:
        return next(iter(splits))
    if wanted is None:
        raise UserError(f"{title} has no {split} split; it has {', '.join(splits)}")
    return wanted


def tables_in(folder: Path) -> list[Path]:
    """The parquet and arrow files below a folder without hidden ones, sorted."""
    found = (Path(root) / name for root, _, names in os.walk(folder) for name in names)
    visible = (path for path in found if not any(part.startswith(".") for part in path.relative_to(folder).parts))
    return sorted(path for path in visible if path.suffix.lower() in BUILDERS)


def table_files(path: Path, split: str) -> list[Path]:
    """The files of a split: a file itself, or those in a folder whose names or folders name the split.

    If none names a split (``train-00000-of-00001.parquet``, ``default/train/0000.parquet``), all files are train. Raises a
    UserError for a missing split, and for parquet next to arrow files.
    """
    files = [path] if path.is_file() else tables_in(path)
    of = {file: split_in(file.name if path.is_file() else str(file.relative_to(path))) for file in files}
    wanted = next((kind for kind in FALLBACKS[split] if kind in of.values()), None)
    chosen = [file for file in files if wanted and of[file] == wanted]
    if split == "train" and not chosen and (path.is_file() or not any(of.values())):
        chosen = files
    if not chosen:
        listed = ", ".join(file.name for file in files[:3])
        raise UserError(f"{path} has no {split} split ({listed}); expected files named {split}-*.parquet")
    if len({file.suffix.lower() for file in chosen}) > 1:
        raise UserError(f"{path} contains parquet and arrow files; give the path of one kind")
    return chosen


def _image_column(features: datasets.Features, image: str, title: str) -> tuple[str, str]:
    """The column of images, and a note if it was one of several."""
    usable = [name for name, feature in features.items() if _is_image(feature)]
    if image:
        if image not in features:
            raise UserError(f"{title} has no column {image!r}; {nearest(image, features)}")
        if image not in usable:
            raise UserError(f"column {image} of {title} does not contain encoded images; {nearest(image, usable)}")
        return image, ""
    if not usable:
        listed = ", ".join(map(printable, features))
        raise UserError(
            f"{title} has no column of encoded images (columns: {listed}); expected a column image of bytes"
        )
    chosen = next((name for name in IMAGE_COLUMNS if name in usable), usable[0])
    others = ", ".join(printable(name) for name in usable if name != chosen)
    return chosen, f"images from column {chosen}; others: {others} (--data.image)" if others else ""


def _is_image(feature: Any) -> bool:
    """Whether a feature is an Image, bytes, or a struct of bytes (and path)."""
    import datasets

    if isinstance(feature, dict):
        return _is_image(feature.get("bytes"))
    return isinstance(feature, datasets.Image) or (
        isinstance(feature, datasets.Value) and feature.dtype in ("binary", "large_binary")
    )


def _classes(
    table: datasets.Dataset, image: str, label: str, title: str, caption: str
) -> tuple[list[Any] | None, tuple[str, ...] | None, tuple[str, ...]]:
    """The value of each row, None without classes; the names of these numbers if they are stored; notes."""
    import datasets

    if label == "none":
        return None, None, ()
    features = {name: feature for name, feature in table.features.items() if name != image and not _is_image(feature)}
    if label in ("folder", "filename"):
        raise UserError(f"{title} is a table without folders or file names; give --data.label COLUMN or none")
    if label and label not in features:
        raise UserError(f"{title} has no column {label!r}; {nearest(label, features)}")
    named = [name for name, feature in features.items() if isinstance(feature, datasets.ClassLabel)]
    captioned = {name for name, feature in features.items() if is_caption(name, caption) and _is_text(feature)}
    candidates = [label] if label else named or [name for name in features if name not in captioned]
    columns = {name: _values(table.data.column(name)) for name in candidates}
    first = label or next((name for name in (*COLUMNS, *named) if name in named), "")
    column, notes = (first, ()) if first else choose_column(columns, title, guess=not captioned)
    if not column:
        return None, None, notes
    stored = getattr(features[column], "names", None)
    unused = [name for name in named if name != column]
    more = (f"classes from column {column}; others: {', '.join(unused)} (--data.label)",) if unused else notes
    return columns[column], tuple(map(str, stored)) if stored else None, more


def _captions(table: datasets.Dataset, caption: str, label: str, title: str) -> tuple[Captions, str]:
    """The captions of each row, None without any, and a note."""
    if caption == "none":
        return None, ""
    texts = [name for name, feature in table.features.items() if _is_text(feature)]
    if caption and caption not in texts:
        what = "is not of text" if caption in table.features else "does not exist"
        raise UserError(f"column {caption!r} of {title} for captions {what}; {nearest(caption, (*texts, 'none'))}")
    for column in caption_columns(texts, caption, label):
        found = [captions_of(value) for value in table.data.column(column).to_pylist()]
        if any(found):
            return found, f"captions from column {printable(column)}"
    if caption:
        raise UserError(f"column {caption!r} of {title} contains no captions; {nearest('', (*texts, 'none'))}")
    return None, ""


def _is_text(feature: Any) -> bool:
    """Whether a feature is text or lists of text."""
    import datasets

    inner = getattr(feature, "feature", None)
    if inner is not None:
        return _is_text(inner)
    return isinstance(feature, datasets.Value) and feature.dtype in ("string", "large_string", "string_view")


def _values(column: pyarrow.ChunkedArray) -> list[Any]:
    """A column's values; of nested ones only the kind counts, so the first that is not null stands for all."""
    import pyarrow

    if pyarrow.types.is_nested(column.type):
        first: Any = next((value.as_py() for value in column if value.is_valid), None)
        return [first] * len(column)
    return column.to_pylist()
