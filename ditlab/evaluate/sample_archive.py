"""ADM's archives of samples, an .npz with the images as arr_0, read without being held in memory."""

from __future__ import annotations

import contextlib
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import numpy as np

from ditlab.errors import UserError

IMAGES = "arr_0"
_LOCAL_HEADER = 30  # bytes of a zip member's own header, before its name and its extra field


@contextlib.contextmanager
def reading(path: Path) -> Iterator[None]:
    """Say in one line that ``path`` is no whole .npz, whatever zip or numpy find wrong with it.

    Raises:
        UserError: instead of their errors.
    """
    try:
        if not zipfile.is_zipfile(path) and path.is_file():  # zipfile and numpy would speak of zips and pickles
            raise UserError(f"{path} is no .npz file, or not a whole one; give one that numpy.savez wrote")
        yield
    except (OSError, EOFError, ValueError, RuntimeError, zipfile.BadZipFile, zlib.error) as error:
        reason = getattr(error, "strerror", None) or " ".join(str(error).split()) or type(error).__name__
        raise UserError(f"{path} cannot be read ({reason}); give a whole .npz file") from error


def read_archive(path: Path) -> np.ndarray:
    """Images uint8 (N, H, W, C) of an archive of ADM's layout, as ``ditlab sample --out FILE.npz`` writes it.

    They stay on disk and are read where they are looked at; of a compressed archive they are held in memory.

    Raises:
        UserError: not an .npz, cut off, or it holds anything else.
    """
    with reading(path), zipfile.ZipFile(path) as archive:
        if f"{IMAGES}.npy" not in archive.namelist():
            there = ", ".join(name.removesuffix(".npy") for name in archive.namelist()) or "none"
            raise UserError(
                f"{path} holds no samples: no {IMAGES} among its keys ({there}); expected uint8 (N, H, W, C) as {IMAGES}"
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
            # Torch warns of arrays that cannot be written; what is written to this one never reaches the file.
            return np.memmap(path, np.uint8, "c", start, shape, "F" if by_columns else "C")
        with archive.open(info) as member:
            return np.lib.format.read_array(member, allow_pickle=False)


def _header(member: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype]:
    """Shape, whether in Fortran's order, and type of the .npy file that begins here."""
    if np.lib.format.read_magic(member) == (1, 0):
        return np.lib.format.read_array_header_1_0(member)
    return np.lib.format.read_array_header_2_0(member)


def _check(path: Path, shape: tuple[int, ...], dtype: np.dtype) -> None:
    expected = "expected uint8 (N, H, W, C) with C 1, 3 or 4"
    if dtype.hasobject:
        raise UserError(
            f"{path} holds Python objects as {IMAGES}, as images of mixed sizes become; {expected}, one size"
        )
    if dtype != np.uint8:
        raise UserError(f"{path} holds {dtype} as {IMAGES}; {expected}")
    if len(shape) != 4 or 0 in shape or shape[3] not in (1, 3, 4):
        raise UserError(f"{path} holds {IMAGES} of shape {shape}; {expected}")


def _content(path: Path, info: zipfile.ZipInfo) -> int:
    """Where the bytes of a zip's member begin in the file."""
    with path.open("rb") as file:
        file.seek(info.header_offset)
        header = file.read(_LOCAL_HEADER)
    name, extra = (int.from_bytes(header[at : at + 2], "little") for at in (26, 28))
    return info.header_offset + _LOCAL_HEADER + name + extra
