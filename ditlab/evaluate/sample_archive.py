"""ADM's archives of samples, .npz files with the images as arr_0, read without loading them into memory."""

from __future__ import annotations

import contextlib
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import numpy as np

from ditlab.data import DataConfig, Dataset
from ditlab.data.arrays import ArraySource
from ditlab.errors import UserError

IMAGES = "arr_0"
_LOCAL_HEADER = 30  # bytes of a zip member's header before its name and its extra field


@contextlib.contextmanager
def npz_errors(path: Path) -> Iterator[None]:
    """Turn errors of zipfile and numpy about ``path`` into UserErrors of one line."""
    try:
        if not zipfile.is_zipfile(path) and path.is_file():  # before numpy's message about pickles
            raise UserError(f"{path} is not a complete .npz file; use one that numpy.savez wrote")
        yield
    except (OSError, EOFError, ValueError, RuntimeError, zipfile.BadZipFile, zlib.error) as error:
        reason = getattr(error, "strerror", None) or " ".join(str(error).split()) or type(error).__name__
        raise UserError(f"{path} cannot be read ({reason}); use a complete .npz file") from error


class ArchiveSource(ArraySource):
    """The images of an archive, hashed in parts, since they may be larger than memory."""

    def identity(self) -> Iterator[bytes]:
        """Shape and pixels."""
        yield str(self.pixels.shape).encode()
        for start in range(0, len(self.pixels), 1024):
            yield self.pixels[start : start + 1024].tobytes()


def open_archive(path: Path, size: tuple[int, ...] = ()) -> Dataset:
    """The images of an archive without labels, brought to ``size`` (H, W) if it is given; errors as ``read_archive``."""
    images = read_archive(path)
    return Dataset(ArchiveSource(path.name, images, np.zeros(len(images), np.int64), ()), DataConfig(size=size))


def array_names(path: Path) -> list[str]:
    """Names of the arrays in an .npz. UserError: not an .npz, or truncated."""
    with npz_errors(path), zipfile.ZipFile(path) as archive:
        return [name.removesuffix(".npy") for name in archive.namelist()]


def read_archive(path: Path) -> np.ndarray:
    """Images uint8 (N, H, W, C) of an archive in ADM's layout, as ``ditlab sample --out FILE.npz`` writes it.

    They are memory-mapped, or loaded if the archive is compressed. UserError: not an .npz, truncated, or anything else.
    """
    with npz_errors(path), zipfile.ZipFile(path) as archive:
        if f"{IMAGES}.npy" not in archive.namelist():
            found = ", ".join(name.removesuffix(".npy") for name in archive.namelist()) or "none"
            raise UserError(
                f"{path} contains no samples: no {IMAGES} among its keys ({found}); expected uint8 (N, H, W, C) as {IMAGES}"
            )
        info = archive.getinfo(f"{IMAGES}.npy")
        with archive.open(info) as member:
            shape, by_columns, dtype = _header(member)
            begins = member.tell()
        _check(path, shape, dtype)
        if info.file_size != begins + np.prod(shape, dtype=np.int64):
            raise UserError(f"{path} has fewer or more bytes than {shape} images need; write the archive again")
        if info.compress_type == zipfile.ZIP_STORED:
            start = _content(path, info) + begins
            # Copy-on-write: torch warns about read-only arrays.
            return np.memmap(path, np.uint8, "c", start, shape, "F" if by_columns else "C")
        with archive.open(info) as member:
            return np.lib.format.read_array(member, allow_pickle=False)


def _header(member: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype]:
    """Shape, whether in Fortran order, and dtype of the .npy file at this position."""
    if np.lib.format.read_magic(member) == (1, 0):
        return np.lib.format.read_array_header_1_0(member)
    return np.lib.format.read_array_header_2_0(member)


def _check(path: Path, shape: tuple[int, ...], dtype: np.dtype) -> None:
    expected = "expected uint8 (N, H, W, C) with C 1, 3 or 4"
    if dtype.hasobject:
        raise UserError(
            f"{path} contains Python objects as {IMAGES}, as images of mixed sizes become; {expected}, one size"
        )
    if dtype != np.uint8:
        raise UserError(f"{path} contains {dtype} as {IMAGES}; {expected}")
    if len(shape) != 4 or 0 in shape or shape[3] not in (1, 3, 4):
        raise UserError(f"{path} contains {IMAGES} of shape {shape}; {expected}")


def _content(path: Path, info: zipfile.ZipInfo) -> int:
    """Offset of a zip member's content in the file."""
    with path.open("rb") as file:
        file.seek(info.header_offset)
        header = file.read(_LOCAL_HEADER)
    name, extra = (int.from_bytes(header[at : at + 2], "little") for at in (26, 28))
    return info.header_offset + _LOCAL_HEADER + name + extra
