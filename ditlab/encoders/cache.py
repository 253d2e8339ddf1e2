"""The latent cache: the moments of every image on disk, encoded once, read in any order as memory-mapped rows.

A shard becomes visible only when it is complete; an interrupted encoding resumes with the missing shards. Every row is
verified by its checksum when it is read.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable
from pathlib import Path
from typing import cast

import numpy as np
import torch

from ditlab.data import Dataset
from ditlab.encoders import shards
from ditlab.encoders.autoencoder import Autoencoder
from ditlab.encoders.pixels import uint8_to_float
from ditlab.errors import UserError
from ditlab.runtime import files
from ditlab.runtime.distributed import ALONE, Processes

SHARD = 8192  # images per shard
Progress = Callable[[int, int], None]


def shard_names(images: int) -> list[str]:
    """Names of the shards of so many images, in order."""
    return [f"{number:05d}" for number in range(-(-images // SHARD))]


def cache_key(dataset: Dataset, autoencoder: Autoencoder, flip: bool) -> dict[str, object]:
    """What a cache depends on: images and preprocessing, autoencoder, flips."""
    return {
        "data": dataset.fingerprint,
        "describes": dataset.describe(),
        "autoencoder": autoencoder.fingerprint(),
        "kind": autoencoder.record()["kind"],
        "flip": flip,
        "images": len(dataset),
        "shape": list(dataset.shape),
        "names": list(dataset.names),
    }


@torch.no_grad()
def encode(
    dataset: Dataset,
    autoencoder: Autoencoder,
    folder: Path,
    *,
    flip: bool,
    batch: int = 64,
    device: torch.device | str = "cpu",
    progress: Progress | None = None,
    finished: Callable[[str], None] | None = None,
    processes: Processes = ALONE,
) -> tuple[str, ...]:
    """Encode every image of ``dataset`` into ``folder``; shards that exist are kept.

    Several processes take turns over the shards; the bytes written do not depend on the number of processes. ``batch`` is
    the images per encoder call; ``flip`` encodes the mirrored images too; the autoencoder stays on ``device``, in evaluation
    mode. ``progress`` is called with the number of images done and of all images of this process, ``finished`` with the
    name of each of its shards when it is complete.

    Returns the images skipped because they could not be read, each with its reason. Raises a UserError if the folder
    contains a cache with another key, no image is readable, or the disk is full.
    """
    key = cache_key(dataset, autoencoder, flip)
    complete = processes.broadcast_from_main(lambda: begin(folder, key))
    if complete is not None:
        return complete
    autoencoder.to(device).eval()
    named = list(zip(shard_names(len(dataset)), range(0, len(dataset), SHARD), strict=True))
    mine = [
        (name, range(start, min(start + SHARD, len(dataset))))
        for name, start in named[processes.rank :: processes.size]
    ]
    done, total = 0, sum(len(images) for _, images in mine)
    for shard, images in mine:
        if not shards.is_whole(folder, shard, flip):
            shards.remove_file(shards.rows_file(folder, shard))
            _encode_shard(
                dataset, autoencoder, folder / shard, images, flip, batch, device,
                lambda now, before=done: progress(before + now, total) if progress else None,
            )  # fmt: skip
        done += len(images)
        if finished and shards.rows_file(folder, shard).exists():  # not written if no image of the shard is readable
            finished(shard)
        if progress:
            progress(done, total)
    processes.barrier()
    return processes.broadcast_from_main(lambda: _complete(folder, key, dataset))


def begin(folder: Path, key: dict[str, object]) -> tuple[str, ...] | None:
    """Prepare a cache's folder for encoding; returns the skipped images if the cache is complete already."""
    manifest = shards.read_manifest(folder)
    if manifest is None:
        broken = [path.name for path in folder.glob(f"*{shards.ROWS}")]  # without a manifest their key is unknown
    else:
        shards.check_key(folder, manifest, key)
        flip, rows = key["flip"], cast(dict[str, list[int]], manifest.get("rows", {}))
        broken = [
            name for name, (_, sum_) in rows.items() if not shards.is_whole(folder, shards.shard_of(name), flip, sum_)
        ]
        if manifest.get("complete") and rows and not broken:
            return tuple(manifest.get("left_out", ()))  # type: ignore[arg-type]
    for name in broken:  # the manifest written next has no checksums to detect these by
        shards.remove_file(folder / name)
    files.write_file(folder / shards.MANIFEST, shards.manifest_text({**key, "complete": False}))
    files.clear_unfinished(folder)
    return None


def _complete(folder: Path, key: dict[str, object], dataset: Dataset) -> tuple[str, ...]:
    """Write the manifest of a cache with all its shards; returns the skipped images."""
    paths = sorted(folder.glob(f"*{shards.ROWS}"))
    contents = [path.read_bytes() for path in paths]
    rows = [shards.read_rows(content) for content in contents]
    kept = np.concatenate(rows)[:, 0] if rows else np.empty(0, np.int64)
    if not len(kept):
        raise UserError(f"no image of {dataset.describe()} could be read")
    missing = np.setdiff1d(np.arange(len(dataset)), kept)
    if len(missing):
        dataset.read(missing)  # another process or an earlier start skipped them; this finds the reasons
    skipped = tuple(dataset.skipped[index] for index in sorted(dataset.skipped))
    sums = [[len(shard), zlib.crc32(content)] for shard, content in zip(rows, contents, strict=True)]
    listed = dict(zip([path.name for path in paths], sums, strict=True))
    complete = {**key, "complete": True, "left_out": skipped, "rows": listed}
    files.write_file(folder / shards.MANIFEST, shards.manifest_text(complete))
    return skipped


def _encode_shard(
    dataset: Dataset, autoencoder: Autoencoder, name: Path, images: range, flip: bool, batch: int,
    device: torch.device | str, progress: Callable[[int], None],
) -> None:  # fmt: skip
    kept: list[np.ndarray] = []
    moments: dict[str, list[np.ndarray]] = {"moments": [], "flipped": []}
    for start in range(0, len(images), batch):
        pixels, indices = dataset.read(images[start : start + batch])
        kept.append(indices)
        if len(indices):
            x = uint8_to_float(pixels, device)
            for kind in shards.kinds(flip):
                encoded = autoencoder.encode(x.flip(3) if kind == "flipped" else x)
                moments[kind].append(encoded.cpu().numpy().astype(np.float16))
        progress(min(start + batch, len(images)))
    indices = np.concatenate(kept)
    if not len(indices):
        return
    rows = np.stack([indices, dataset.labels[indices], *np.zeros((2, len(indices)), np.int64)], axis=1)
    for column, kind in enumerate(shards.kinds(flip), start=2):
        array = np.ascontiguousarray(np.concatenate(moments[kind]))
        files.write_file(name.with_suffix(f".{kind}.npy"), shards.npy(array))
        rows[:, column] = shards.checksums(array)
    files.write_file(name.with_suffix(shards.ROWS), shards.npy(rows))


class LatentCache:
    """A complete cache, opened for reading; a UserError if there is none with this key.

    ``labels`` is int64 (N,), ``indices`` int64 (N,) those of the images in their data set, ``shape`` (channels, h, w) of the
    moments of one image, ``fingerprint`` that of images and autoencoder; ``skipped`` are the images that could not be read,
    each with its reason.
    """

    def __init__(self, folder: Path, key: dict[str, object]):
        manifest = shards.read_manifest(folder)
        if manifest is None or not manifest.get("complete"):
            raise UserError(f"no finished latent cache in {folder}; create it with `ditlab encode RECIPE`")
        shards.check_key(folder, manifest, key)
        if not manifest.get("rows"):
            raise UserError(f"the latent cache {folder} lists no shards; encode again")
        self.names: list[str] = []
        rows: list[np.ndarray] = []
        self._shards: dict[bool, list[np.ndarray]] = {False: [], True: []}
        for name, (_, checksum) in manifest["rows"].items():  # type: ignore[attr-defined]
            self.names.append(shards.shard_of(name))
            rows.append(_opened(folder / name, lambda path, sum_=checksum: shards.read_rows(path.read_bytes(), sum_)))
            for flipped, kind in enumerate(shards.kinds(key["flip"])):
                path, count = folder / f"{self.names[-1]}.{kind}.npy", len(rows[-1])
                self._shards[bool(flipped)].append(
                    _opened(path, lambda path, count=count: shards.map_moments(path, count))
                )
        self.folder = folder
        self.fingerprint = f"{manifest['data']}-{manifest['autoencoder']}"
        self.skipped: tuple[str, ...] = tuple(manifest.get("left_out", ()))  # type: ignore[arg-type]
        table = np.concatenate(rows)
        self.indices, self.labels = table[:, 0], table[:, 1]
        self._sums = {False: table[:, 2], True: table[:, 3]}
        self.shape: tuple[int, ...] = self._shards[False][0].shape[1:]
        self._starts = np.cumsum([0, *(len(shard) for shard in rows)])

    def __len__(self) -> int:
        return len(self.labels)

    def read(self, indices: np.ndarray, flips: np.ndarray) -> np.ndarray:
        """Moments float16 (M, channels, h, w) of rows ``indices`` (M,), mirrored images where ``flips`` (M,) is True.

        Raises a UserError if a row has changed on disk since it was encoded.
        """
        result = np.empty((len(indices), *self.shape), np.float16)
        shard = np.searchsorted(self._starts, indices, side="right") - 1
        for number in np.unique(shard):
            for flipped, sources in self._shards.items():
                selected = np.flatnonzero((shard == number) & (flips == flipped))
                if not len(selected):
                    continue
                chosen = indices[selected]
                result[selected] = sources[number][chosen - self._starts[number]]
                wrong = shards.checksums(result[selected]) != self._sums[flipped][chosen]
                if wrong.any():
                    row = int(chosen[wrong][0] - self._starts[number])
                    path = self.folder / f"{self.names[number]}.{shards.kinds(True)[flipped]}.npy"
                    raise _damaged(path, f"row {row} has changed")
        return result


def _opened(path: Path, opening: Callable[[Path], np.ndarray]) -> np.ndarray:
    try:
        return opening(path)
    except shards.DAMAGED as error:
        raise _damaged(path, str(error)) from error


def _damaged(path: Path, reason: str) -> UserError:
    rows, reason = f"{path.name.split('.')[0]}{shards.ROWS}", " ".join(reason.split())
    advice = f"delete {rows} there and encode again, which rebuilds this shard"
    return UserError(f"the latents in {path} are damaged ({reason}); {advice}")
