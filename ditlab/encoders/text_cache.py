"""The caption cache: features of texts on disk, encoded once, read in any order as memory-mapped rows.

::

    manifest.json          encoder, digest and number of the texts; whether it is complete; if so, the CRC-32 of every
                           rows file
    00000.features.npy     float16 (tokens, E): the tokens of SHARD texts, one text after another, without padding
    00000.rows.npy         int64 (texts, 2): tokens of each text, and the CRC-32 of their features

The rows file is written last: if it exists, the shard is complete, and an interrupted encoding resumes with the others.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import cast

import numpy as np
import torch

from ditlab.data.dataset import caption_digest
from ditlab.encoders import shards
from ditlab.encoders.text import TextEncoder
from ditlab.errors import UserError
from ditlab.runtime import files
from ditlab.runtime.distributed import ALONE, Processes

SHARD = 1024  # texts of a shard
ENCODED = 64  # texts encoded between two reports of progress
COLUMNS = 2  # of a rows file
Progress = Callable[[int, int], None]


def cache_key(texts: Sequence[str], encoder: TextEncoder) -> dict[str, object]:
    """What a cache depends on."""
    return {"encoder": encoder.record(), "captions": caption_digest([(text,) for text in texts]), "texts": len(texts)}


def encode_texts(
    texts: Sequence[str],
    encoder: TextEncoder,
    folder: Path,
    *,
    progress: Progress | None = None,
    processes: Processes = ALONE,
) -> TextCache:
    """Encode what ``folder`` lacks of the features of ``texts``, which differ from each other, and open it.

    Several processes take turns over the shards. ``progress`` is called with the texts done and all texts of this process.

    Raises:
        UserError: the folder contains a cache of other texts or of another encoder, or the disk is full.
    """
    key = cache_key(texts, encoder)
    complete = processes.broadcast_from_main(lambda: _begin(folder, key))
    if not complete:
        starts = range(processes.rank * SHARD, len(texts), processes.size * SHARD)
        mine = [range(start, min(start + SHARD, len(texts))) for start in starts]
        done, total = 0, sum(map(len, mine))
        for part in mine:
            shard = _name(part.start // SHARD)
            if not _is_whole(folder, shard):
                shards.remove_file(shards.rows_file(folder, shard))
                _encode_shard(
                    [texts[row] for row in part], encoder, folder / shard,
                    lambda now, before=done: progress(before + now, total) if progress else None,
                )  # fmt: skip
            done += len(part)
            if progress:
                progress(done, total)
        processes.barrier()
        processes.broadcast_from_main(lambda: _complete(folder, key))
    return TextCache(folder, texts, encoder)


def _name(shard: int) -> str:
    return f"{shard:05d}"


def _begin(folder: Path, key: dict[str, object]) -> bool:
    """Prepare a folder for encoding; True if its cache is complete already."""
    manifest = shards.read_manifest(folder)
    if manifest is not None:
        _check_key(folder, manifest, key)
        rows = cast(dict[str, int], manifest.get("rows", {}))
        broken = [name for name, checksum in rows.items() if not _is_whole(folder, shards.shard_of(name), checksum)]
        if manifest.get("complete") and not broken:
            return True
    else:
        broken = [path.name for path in folder.glob(f"*{shards.ROWS}")]  # without a manifest their key is unknown
    for name in broken:
        shards.remove_file(folder / name)
    files.write_file(folder / shards.MANIFEST, shards.manifest_text({**key, "complete": False}))
    files.clear_unfinished(folder)
    return False


def _check_key(folder: Path, manifest: dict[str, object], key: dict[str, object]) -> None:
    encoder = cast(dict[str, object], manifest.get("encoder") or {})
    wanted = cast(dict[str, object], key["encoder"])
    reasons = [
        f"{name} {encoder.get(name)}, not {value}" for name, value in wanted.items() if encoder.get(name) != value
    ]
    if not reasons and manifest.get("captions") != key["captions"]:
        reasons = [f"other captions ({manifest.get('texts')} texts there, {key['texts']} here)"]
    if reasons:
        raise UserError(
            f"the caption cache {folder} was made with {reasons[0]}; delete it or give another --text.cache"
        )


def _is_whole(folder: Path, shard: str, checksum: int | None = None) -> bool:
    try:
        rows = shards.read_rows(shards.rows_file(folder, shard).read_bytes(), checksum, COLUMNS)
        shards.map_moments(folder / f"{shard}.features.npy", int(rows[:, 0].sum()))
    except shards.DAMAGED:
        return False
    return True


def _complete(folder: Path, key: dict[str, object]) -> None:
    paths = sorted(folder.glob(f"*{shards.ROWS}"))
    rows = {path.name: zlib.crc32(path.read_bytes()) for path in paths}
    files.write_file(folder / shards.MANIFEST, shards.manifest_text({**key, "complete": True, "rows": rows}))


def _encode_shard(texts: Sequence[str], encoder: TextEncoder, name: Path, progress: Callable[[int], None]) -> None:
    features: list[np.ndarray] = []
    for start in range(0, len(texts), ENCODED):
        value, mask = encoder.encode(texts[start : start + ENCODED])
        half = value.to(torch.float16)
        if not half.isfinite().all():
            raise UserError("features of the text encoder exceed float16; give --text.layers, which normalises them")
        features += [row[valid].numpy() for row, valid in zip(half, mask, strict=True)]
        progress(min(start + ENCODED, len(texts)))
    rows = np.array([(len(each), zlib.crc32(each.data)) for each in features], np.int64)
    files.write_file(name.with_suffix(".features.npy"), shards.npy(np.concatenate(features)))
    files.write_file(name.with_suffix(shards.ROWS), shards.npy(rows))


class TextCache:
    """A complete cache, opened for reading.

    Attributes:
        rows: of each text.
        lengths: tokens of each row, int64 (U,).
    """

    def __init__(self, folder: Path, texts: Sequence[str], encoder: TextEncoder):
        manifest = shards.read_manifest(folder) or {}
        tables = []
        self._folder, self._width, self._features = folder, encoder.features, list[np.ndarray]()
        for name, checksum in sorted(cast(dict[str, int], manifest["rows"]).items()):
            path = folder / f"{shards.shard_of(name)}.features.npy"
            try:
                tables.append(shards.read_rows((folder / name).read_bytes(), checksum, COLUMNS))
                self._features.append(shards.map_moments(path, int(tables[-1][:, 0].sum())))
            except shards.DAMAGED as error:
                raise _damaged(path, str(error)) from error
        table = np.concatenate(tables)
        self.rows = {text: row for row, text in enumerate(texts)}
        self.lengths, self._sums = table[:, 0], table[:, 1]
        self._ends = np.concatenate([np.cumsum(each[:, 0]) for each in tables])

    def read(self, rows: np.ndarray) -> np.ndarray:
        """Features float16 (N, S, E) of ``rows`` (N,), zeros after their tokens; S is the longest of the cache, or 1.

        Raises:
            UserError: a row has changed on disk since it was encoded.
        """
        result = np.zeros((len(rows), max(1, int(self.lengths.max())), self._width), np.float16)
        for place, row in enumerate(rows.tolist()):
            end, length, shard = self._ends[row], self.lengths[row], row // SHARD
            result[place, :length] = self._features[shard][end - length : end]
            if zlib.crc32(result[place, :length].data) != self._sums[row]:
                raise _damaged(self._folder / f"{_name(shard)}.features.npy", f"row {row % SHARD} has changed")
        return result


def _damaged(path: Path, reason: str) -> UserError:
    advice = f"delete {path.name.split('.')[0]}{shards.ROWS} there and train again, which rebuilds this shard"
    return UserError(f"the captions in {path} are damaged ({' '.join(reason.split())}); {advice}")
