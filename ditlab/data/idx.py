"""MNIST's IDX files, and the search for fashion and mnist: a folder, the system, the user's cache, the hub."""

from __future__ import annotations

import gzip
import math
import zlib
from dataclasses import dataclass
from logging import CRITICAL
from pathlib import Path

import numpy as np

from ditlab.data.arrays import ArraySource
from ditlab.data.source import Source, stamps_of
from ditlab.data.tables import open_table
from ditlab.errors import UserError
from ditlab.runtime.files import cache_home

_UNSIGNED_BYTE = 8


@dataclass(frozen=True)
class KnownSet:
    """A published data set."""

    names: tuple[str, ...]  # classes in label order
    system: str  # folder of the IDX files in Debian's package, empty without a package
    repository: str  # on the Hugging Face hub; its folder contains one parquet file per split
    folder: str
    advice: str  # how to get the files without the hub


_FOUR_FILES = "put its four IDX files (train-images-idx3-ubyte.gz, ...) in a folder and give --data.path"
KNOWN = {
    "fashion": KnownSet(
        names=("t-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle boot"),
        system="/usr/share/datasets/fashion-mnist",
        repository="zalando-datasets/fashion_mnist",
        folder="fashion_mnist",
        advice=f"apt install dataset-fashion-mnist, or {_FOUR_FILES}",
    ),
    "mnist": KnownSet(tuple("0123456789"), system="", repository="ylecun/mnist", folder="mnist", advice=_FOUR_FILES),
}


def open_known(name: str, path: str, split: str) -> Source:
    """Fashion-MNIST or MNIST from the folder ``path`` only, if given, otherwise from the first place that has it.

    Raises a UserError if the files are not found and cannot be downloaded, or are damaged.
    """
    known = KNOWN[name]
    folders = [path] if path else [known.system] * bool(known.system) + [cache_home() / name]
    for folder in map(Path, folders):
        if pair := _pair(folder, split):
            return _open_pair(name, known, *pair)
    if path:
        wanted = ", ".join(_file_names(split))
        raise UserError(f"{path} does not contain the {split} files of {name}; expected {wanted}, plain or .gz")
    return open_table(_fetch(name, known, split), "train", names=known.names, title=name)


def read_idx(path: Path) -> np.ndarray:
    """The array of an IDX file, plain or gzip, as uint8 of any rank; a UserError if damaged or not of unsigned bytes."""
    try:
        content = path.read_bytes()
        if content[:2] == b"\x1f\x8b":
            content = gzip.decompress(content)
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"{path} cannot be read ({error}); download the file again") from error
    if len(content) < 4 or content[:2] != b"\0\0" or len(content) < 4 + 4 * content[3]:
        raise UserError(
            f"{path} is not an IDX file (it starts with {content[:4].hex() or 'nothing'}); expected 000008 and a rank"
        )
    if content[2] != _UNSIGNED_BYTE:
        raise UserError(f"{path} contains IDX values of type 0x{content[2]:02x}; expected unsigned bytes, 0x08")
    rank = content[3]
    shape = tuple(int(side) for side in np.frombuffer(content, ">u4", rank, 4))
    expected, present = math.prod(shape), len(content) - 4 - 4 * rank
    if present != expected:
        shown = " x ".join(str(side) for side in shape)
        raise UserError(f"{path} contains {present:,} values, {shown} need {expected:,}; download the file again")
    return np.frombuffer(content, np.uint8, offset=4 + 4 * rank).reshape(shape)


def _file_names(split: str) -> tuple[str, str]:
    stem = "train" if split == "train" else "t10k"
    return f"{stem}-images-idx3-ubyte", f"{stem}-labels-idx1-ubyte"


def _pair(folder: Path, split: str) -> tuple[Path, Path] | None:
    """The image file and the label file of a split in a folder, None unless both exist."""
    images, labels = (
        next((path for path in (folder / name, folder / f"{name}.gz") if path.is_file()), None)
        for name in _file_names(split)
    )
    return (images, labels) if images and labels else None


def _open_pair(name: str, known: KnownSet, images: Path, labels: Path) -> ArraySource:
    pixels, classes = read_idx(images), read_idx(labels)
    if pixels.ndim not in (3, 4) or 0 in pixels.shape:
        raise UserError(f"{images} has shape {pixels.shape}; expected (N, H, W) or (N, H, W, C)")
    if classes.shape != pixels.shape[:1]:
        raise UserError(f"{labels} has labels of shape {classes.shape}, {images.name} has {len(pixels)} images")
    if classes.max() >= len(known.names):
        raise UserError(f"{labels} contains label {classes.max()}; {name} has labels 0 to {len(known.names) - 1}")
    if pixels.ndim == 3:
        pixels = pixels[..., None]
    return ArraySource(name, pixels, classes.astype(np.int64), known.names, stamps_of(images, labels))


def _fetch(name: str, known: KnownSet, split: str) -> Path:
    """The split's parquet file from the Hugging Face hub, kept in the hub's cache."""
    file = f"{known.folder}/{split}-00000-of-00001.parquet"
    try:
        import huggingface_hub

        huggingface_hub.logging.set_verbosity(CRITICAL)  # the error below reports a failure
        return Path(huggingface_hub.hf_hub_download(known.repository, file, repo_type="dataset"))
    except ImportError as error:
        advice = f"{known.advice}, or pip install 'ditlab[hub,data]'"
        raise UserError(f"{name} is not on this machine; {advice}") from error
    except Exception as error:  # the hub's client raises the errors of the HTTP library it uses
        failure = f"downloading {known.repository} failed ({type(error).__name__})"
        raise UserError(f"{name} is not on this machine and {failure}; {known.advice}") from error
