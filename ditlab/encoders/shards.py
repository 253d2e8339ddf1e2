"""The files of an encoded cache: a manifest, and shards of a few thousand images each.

::

    manifest.json                 which images, which autoencoder, which preprocessing; complete or not; once it is,
                                  the length and the CRC-32 of every rows file
    00000.moments.npy             float16 (rows, channels, h, w)
    00000.flipped.npy             the same of the mirrored images, where the recipe flips
    00000.rows.npy                int64 (rows, 4): each row's image in the source, its label, and the CRC-32 of its
                                  moments and of its mirrored image's

The rows file is written last: where it stands, the shard is whole. The manifest vouches for the rows files, and these for
every row of the moments.
"""

from __future__ import annotations

import io
import json
import threading
import zlib
from pathlib import Path
from typing import Any, Literal

import numpy as np

from ditlab.errors import UserError
from ditlab.runtime import files

MANIFEST = "manifest.json"
ROWS = ".rows.npy"
# numpy parses headers as Python, which Python 3.11 does not do in two threads at once (python/cpython issue 106905).
_HEADERS = threading.Lock()
BROKEN = (OSError, ValueError)  # what opening a file of a shard raises where it is missing or damaged


def parse_manifest(content: bytes, where: object) -> dict[str, object]:
    """A manifest's fields; ``where`` is the cache's folder or address, for the message.

    Raises:
        UserError: it is damaged.
    """
    try:
        manifest = json.loads(content)
        if not isinstance(manifest, dict):
            raise ValueError("not an object")
    except ValueError as error:
        raise UserError(f"{where}/{MANIFEST} cannot be read ({error}); delete {where} and encode again") from error
    return manifest


def read_manifest(folder: Path) -> dict[str, object] | None:
    """The manifest of the cache in a folder, None where there is none.

    Raises:
        UserError: it is damaged, or cannot be read.
    """
    try:
        content = (folder / MANIFEST).read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise UserError(f"{folder / MANIFEST} cannot be read ({error}); delete {folder} and encode again") from error
    return parse_manifest(content, folder)


def is_complete(folder: Path) -> bool:
    """Whether a folder contains a finished cache.

    Raises:
        UserError: its manifest is damaged, or cannot be read.
    """
    return bool((read_manifest(folder) or {}).get("complete"))


def manifest_text(manifest: dict[str, object]) -> str:
    """What a manifest's file holds."""
    return json.dumps(manifest, indent=2) + "\n"


def refuse_others(where: object, manifest: dict[str, object], wanted: dict[str, object]) -> None:
    """Look whether a cache, in a folder or at an address, was made from the things wanted.

    Raises:
        UserError: from others; the message says from which.
    """
    reasons = {
        "data": f"other images or preprocessing ({manifest.get('describes')}; wanted: {wanted['describes']})",
        "autoencoder": f"another autoencoder ({manifest.get('kind')} {str(manifest.get('autoencoder'))[:8]})",
        "flip": f"data.flip {manifest.get('flip')}",
    }
    for key, reason in reasons.items():
        if manifest.get(key) != wanted[key]:
            raise UserError(f"the latent cache {where} was made with {reason}; delete it or give another --latents")


def kinds(flip: object) -> tuple[str, ...]:
    """The files of moments that a shard has."""
    return ("moments", "flipped") if flip else ("moments",)


def rows_file(folder: Path, shard: str) -> Path:
    """Where a shard's rows are."""
    return folder / f"{shard}{ROWS}"


def shard_of(name: str) -> str:
    """The shard that a rows file is of."""
    return name.removesuffix(ROWS)


def discard(path: Path) -> None:
    """Delete a file that is not what it should be, or is not there at all.

    Raises:
        UserError: the place cannot be written.
    """
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        raise files.cannot_write(path, error) from error


def _load(file: Path | io.BytesIO, mmap_mode: Literal["r"] | None = None) -> Any:
    with _HEADERS:
        try:
            return np.load(file, mmap_mode)
        except OSError:
            raise
        except Exception as error:  # a damaged header, read as Python, raises anything: SyntaxError, TokenError, ...
            raise ValueError(str(error)) from error


def read_rows(content: bytes, checksum: int | None = None) -> np.ndarray:
    """A shard's rows, int64 (N, 4), of what its rows file holds; raises BROKEN where that is not what it was."""
    if checksum is not None and zlib.crc32(content) != checksum:
        raise ValueError("its checksum is another")
    rows = _load(io.BytesIO(content))
    if rows.shape[1:] != (4,):
        raise ValueError("it is of an earlier version")
    return rows


def map_moments(path: Path, rows: int) -> np.ndarray:
    """A shard's moments (rows, channels, h, w), memory-mapped; raises BROKEN where the file is not of that size."""
    array = _load(path, mmap_mode="r")
    if len(array) != rows or array.offset + array.nbytes != path.stat().st_size:
        raise ValueError(f"not the size of {rows} rows")
    return array


def npy(array: np.ndarray) -> bytes:
    """An array as the content of an .npy file."""
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


def checksums(rows: np.ndarray) -> np.ndarray:
    """CRC-32 of each row, int64 (N,)."""
    return np.array([zlib.crc32(row) for row in rows], np.int64)


def check_moments(path: Path, sums: np.ndarray) -> None:
    """Read all of a shard's moments; raises BROKEN where they are not of these checksums (N,)."""
    changed = np.flatnonzero(checksums(map_moments(path, len(sums))) != sums)
    if len(changed):
        raise ValueError(f"row {changed[0]} has changed")


def is_whole(folder: Path, shard: str, flip: object, checksum: int | None = None) -> bool:
    """Whether a shard's files are all there, of their sizes, and its rows file of ``checksum`` where that is known."""
    try:
        rows = read_rows(rows_file(folder, shard).read_bytes(), checksum)
        for kind in kinds(flip):
            map_moments(folder / f"{shard}.{kind}.npy", len(rows))
    except BROKEN:
        return False
    return True
