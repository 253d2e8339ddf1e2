"""The files of a latent cache: a manifest, and shards of a few thousand images each.

::

    manifest.json                 images, autoencoder and preprocessing; whether it is complete; if so, length and
                                  CRC-32 of every rows file
    00000.moments.npy             float16 (rows, channels, h, w)
    00000.flipped.npy             the same of the mirrored images, if the recipe flips
    00000.rows.npy                int64 (rows, 4): index of the image in the data set, its class, and the CRC-32 of its
                                  moments and of those of its mirrored image

The rows file is written last: if it exists, the shard is complete. The manifest has the checksums of the rows files,
which have the checksums of every row of the moments.
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
# numpy parses headers as Python code, which is not thread-safe in Python 3.11 (python/cpython issue 106905).
_HEADERS = threading.Lock()
DAMAGED = (OSError, ValueError)  # raised when a file of a shard is missing or damaged


def parse_manifest(content: bytes, where: object) -> dict[str, object]:
    """A manifest's fields; ``where`` is the cache's folder or URL, for the message if it is damaged."""
    try:
        manifest = json.loads(content)
        if not isinstance(manifest, dict):
            raise ValueError("not an object")
    except ValueError as error:
        raise UserError(f"{where}/{MANIFEST} cannot be read ({error}); delete {where} and encode again") from error
    return manifest


def read_manifest(folder: Path) -> dict[str, object] | None:
    """The manifest of the cache in a folder, None if there is none; a UserError if it cannot be read."""
    try:
        content = (folder / MANIFEST).read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise UserError(f"{folder / MANIFEST} cannot be read ({error}); delete {folder} and encode again") from error
    return parse_manifest(content, folder)


def is_complete(folder: Path) -> bool:
    """Whether a folder contains a finished cache."""
    return bool((read_manifest(folder) or {}).get("complete"))


def manifest_text(manifest: dict[str, object]) -> str:
    """Content of a manifest file."""
    return json.dumps(manifest, indent=2) + "\n"


def check_key(where: object, manifest: dict[str, object], key: dict[str, object]) -> None:
    """Compare the key of a cache, in a folder or at a URL, with the key needed; a UserError names the difference."""
    reasons = {
        "data": f"other images or preprocessing ({manifest.get('describes')}; needed: {key['describes']})",
        "autoencoder": f"another autoencoder ({manifest.get('kind')} {str(manifest.get('autoencoder'))[:8]})",
        "flip": f"data.flip {manifest.get('flip')}",
    }
    for name, reason in reasons.items():
        if manifest.get(name) != key[name]:
            raise UserError(f"the latent cache {where} was made with {reason}; delete it or give another --latents")


def kinds(flip: object) -> tuple[str, ...]:
    """The kinds of moments files of a shard."""
    return ("moments", "flipped") if flip else ("moments",)


def rows_file(folder: Path, shard: str) -> Path:
    """Path of a shard's rows file."""
    return folder / f"{shard}{ROWS}"


def shard_of(name: str) -> str:
    """Name of the shard of a rows file."""
    return name.removesuffix(ROWS)


def remove_file(path: Path) -> None:
    """Delete a file if it exists; a UserError if the folder cannot be written."""
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
        except Exception as error:  # a damaged header raises any error of Python's parser
            raise ValueError(str(error)) from error


def read_rows(content: bytes, checksum: int | None = None, columns: int = 4) -> np.ndarray:
    """Rows int64 (N, columns) from the content of a rows file; raises DAMAGED if its checksum or shape is wrong."""
    if checksum is not None and zlib.crc32(content) != checksum:
        raise ValueError("wrong checksum")
    rows = _load(io.BytesIO(content))
    if rows.shape[1:] != (columns,):
        raise ValueError("written by an earlier version")
    return rows


def map_moments(path: Path, rows: int) -> np.ndarray:
    """A shard's moments (rows, channels, h, w), memory-mapped; raises DAMAGED if the file has another size."""
    array = _load(path, mmap_mode="r")
    if len(array) != rows or array.offset + array.nbytes != path.stat().st_size:
        raise ValueError(f"not the size of {rows} rows")
    return array


def npy(array: np.ndarray) -> bytes:
    """The content of an .npy file of an array."""
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


def checksums(rows: np.ndarray) -> np.ndarray:
    """CRC-32 of each row, int64 (N,)."""
    return np.array([zlib.crc32(row) for row in rows], np.int64)


def check_moments(path: Path, sums: np.ndarray) -> None:
    """Verify all moments of a shard by their checksums (N,); raises DAMAGED if one differs."""
    changed = np.flatnonzero(checksums(map_moments(path, len(sums))) != sums)
    if len(changed):
        raise ValueError(f"row {changed[0]} has changed")


def is_whole(folder: Path, shard: str, flip: object, checksum: int | None = None) -> bool:
    """Whether all files of a shard exist with their right sizes, and its rows file has ``checksum`` if that is known."""
    try:
        rows = read_rows(rows_file(folder, shard).read_bytes(), checksum)
        for kind in kinds(flip):
            map_moments(folder / f"{shard}.{kind}.npy", len(rows))
    except DAMAGED:
        return False
    return True
