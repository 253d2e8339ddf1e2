"""The encoded cache: moments of every image on disk, encoded once, read at random as memory-mapped rows.

Shards appear whole; a cache that was interrupted does the shards that are missing. Every row is checked when it is read.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from ditlab.data import Dataset
from ditlab.encoders.autoencoder import Autoencoder
from ditlab.encoders.pixels import uint8_to_float
from ditlab.encoders.shards import (
    BROKEN,
    MANIFEST,
    ROWS,
    checksums,
    discard,
    is_whole,
    kinds,
    manifest_text,
    map_moments,
    npy,
    read_manifest,
    read_rows,
    refuse_others,
    rows_file,
    shard_of,
)
from ditlab.errors import UserError
from ditlab.runtime import files
from ditlab.runtime.distributed import ALONE, Processes

SHARD = 8192  # images a shard
Progress = Callable[[int, int], None]


def shard_names(images: int) -> list[str]:
    """What the shards of so many images are called, in order."""
    return [f"{number:05d}" for number in range(-(-images // SHARD))]


def identity(dataset: Dataset, autoencoder: Autoencoder, flip: bool) -> dict[str, object]:
    """What makes a cache this one and no other: images and preprocessing, autoencoder, flips."""
    autoencoder_record = autoencoder.record()
    return {
        "data": dataset.fingerprint,
        "describes": dataset.describe(),
        "autoencoder": autoencoder.fingerprint(),
        "kind": autoencoder_record["kind"],
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
    """Encode every image of ``dataset`` into ``folder``; does only what is still missing.

    Many processes take the shards in turn; what they write does not depend on how many they are.

    Args:
        dataset: the images.
        autoencoder: makes the moments; left on ``device``, in evaluation mode.
        folder: the cache; another cache there is never overwritten.
        flip: encode the mirrored images too.
        batch: images at a time.
        device: where the encoder runs.
        progress: called with images done and images in all, of this process's share.
        finished: called with the name of every shard of this process's share once it is whole.
        processes: that share the work.

    Returns:
        Images left out since they could not be read, each with its reason.

    Raises:
        UserError: the folder holds a cache made from other things, nothing was readable, or the disk is full.
    """
    wanted = identity(dataset, autoencoder, flip)
    complete = processes.broadcast_from_main(lambda: begin(folder, wanted))
    if complete is not None:
        return complete
    autoencoder.to(device).eval()
    named = zip(shard_names(len(dataset)), range(0, len(dataset), SHARD), strict=True)
    shards = {
        name: range(start, min(start + SHARD, len(dataset)))
        for name, start in list(named)[processes.rank :: processes.size]
    }
    mine = sum(len(images) for images in shards.values())
    done = 0
    for shard, images in shards.items():
        if not is_whole(folder, shard, flip):
            discard(rows_file(folder, shard))
            told = done  # the closure's own, since ``done`` moves on
            _encode_shard(
                dataset, autoencoder, folder / shard, images, flip, batch, device,
                lambda now, told=told: progress(told + now, mine) if progress else None,
            )  # fmt: skip
        done += len(images)
        if finished and rows_file(folder, shard).exists():  # it does not where no image of it could be read
            finished(shard)
        if progress:
            progress(done, mine)
    processes.barrier()
    return processes.broadcast_from_main(lambda: _complete(folder, wanted, dataset))


def begin(folder: Path, wanted: dict[str, object]) -> tuple[str, ...] | None:
    """Make a cache's folder ready to be filled; gives the images left out where it is complete already.

    Raises:
        UserError: it holds a cache made from other things, or cannot be written.
    """
    manifest = read_manifest(folder)
    if manifest is None:
        broken = [path.name for path in folder.glob(f"*{ROWS}")]  # nothing says of what these are
    else:
        refuse_others(folder, manifest, wanted)
        rows: dict[str, list[int]] = manifest.get("rows", {})  # type: ignore[assignment]
        broken = [
            name for name, (_, sum_) in rows.items() if not is_whole(folder, shard_of(name), wanted["flip"], sum_)
        ]
        if manifest.get("complete") and rows and not broken:
            return tuple(manifest.get("left_out", ()))  # type: ignore[arg-type]
    for name in broken:  # once the manifest is written anew, there is no checksum that would tell
        discard(folder / name)
    files.write_file(folder / MANIFEST, manifest_text({**wanted, "complete": False}))
    files.clear_unfinished(folder)
    return None


def _complete(folder: Path, wanted: dict[str, object], dataset: Dataset) -> tuple[str, ...]:
    """Write the manifest of a cache whose shards are all there; gives the images left out."""
    paths = sorted(folder.glob(f"*{ROWS}"))
    contents = [path.read_bytes() for path in paths]
    rows = [read_rows(content) for content in contents]
    kept = np.concatenate(rows)[:, 0] if rows else np.empty(0, np.int64)
    if not len(kept):
        raise UserError(f"no image of {dataset.describe()} could be read")
    missing = np.setdiff1d(np.arange(len(dataset)), kept)
    if len(missing):
        dataset.read(missing)  # others may have met them, or an earlier start: their reasons have to be told here
    skipped = tuple(dataset.skipped[index] for index in sorted(dataset.skipped))
    listed = {
        path.name: [len(shard), zlib.crc32(content)] for path, shard, content in zip(paths, rows, contents, strict=True)
    }
    complete = {**wanted, "complete": True, "left_out": skipped, "rows": listed}
    files.write_file(folder / MANIFEST, manifest_text(complete))
    return skipped


def _encode_shard(
    dataset: Dataset,
    autoencoder: Autoencoder,
    name: Path,
    images: range,
    flip: bool,
    batch: int,
    device: torch.device | str,
    progress: Callable[[int], None],
) -> None:
    kept: list[np.ndarray] = []
    moments: dict[str, list[np.ndarray]] = {"moments": [], "flipped": []}
    for start in range(images.start, images.stop, batch):
        pixels, indices = dataset.read(np.arange(start, min(start + batch, images.stop)))
        kept.append(indices)
        if len(indices):
            x = uint8_to_float(pixels, device)
            moments["moments"].append(autoencoder.encode(x).cpu().numpy().astype(np.float16))
            if flip:
                moments["flipped"].append(autoencoder.encode(x.flip(3)).cpu().numpy().astype(np.float16))
        progress(min(start + batch, images.stop) - images.start)
    indices = np.concatenate(kept)
    sums = []
    for kind, parts in moments.items():
        array = np.ascontiguousarray(np.concatenate(parts)) if parts else None
        if array is not None:
            files.write_file(name.with_suffix(f".{kind}.npy"), npy(array))
        sums.append(np.zeros(len(indices), np.int64) if array is None else checksums(array))
    if len(indices):
        rows = np.stack([indices, dataset.labels[indices], *sums], axis=1)
        files.write_file(name.with_suffix(".rows.npy"), npy(rows))


class LatentCache:
    """A complete cache, open for reading.

    Attributes:
        labels: int64 (N,).
        fingerprint: of the images and the autoencoder it was made from.
        left_out: images that could not be read, each with its reason.
        shape: of one image's moments (channels, h, w).

    Raises:
        UserError: no cache there, one that is not finished, or one made from other things than ``wanted``.
    """

    def __init__(self, folder: Path, wanted: dict[str, object]):
        manifest = read_manifest(folder)
        if manifest is None or not manifest.get("complete"):
            raise UserError(f"no finished latent cache in {folder}: make it with `ditlab encode RECIPE`")
        refuse_others(folder, manifest, wanted)
        if not manifest.get("rows"):
            raise UserError(f"the latent cache {folder} names no shards: encode again")
        self.names: list[str] = []
        rows: list[np.ndarray] = []
        self._shards: dict[bool, list[np.ndarray]] = {False: [], True: []}
        for name, (_, checksum) in manifest["rows"].items():  # type: ignore[attr-defined]
            self.names.append(shard_of(name))
            rows.append(_opened(folder / name, lambda path, sum_=checksum: read_rows(path.read_bytes(), sum_)))
            for flipped, kind in enumerate(kinds(wanted["flip"])):
                path, count = folder / f"{self.names[-1]}.{kind}.npy", len(rows[-1])
                self._shards[bool(flipped)].append(_opened(path, lambda path, count=count: map_moments(path, count)))
        self.folder = folder
        self.fingerprint = f"{manifest['data']}-{manifest['autoencoder']}"
        self.skipped: tuple[str, ...] = tuple(manifest.get("left_out", ()))  # type: ignore[arg-type]
        table = np.concatenate(rows)
        self.labels = table[:, 1]
        self._sums = {False: table[:, 2], True: table[:, 3]}
        self.shape: tuple[int, ...] = self._shards[False][0].shape[1:]
        self._starts = np.cumsum([0, *(len(shard) for shard in rows)])

    def __len__(self) -> int:
        return len(self.labels)

    def read(self, indices: np.ndarray, flips: np.ndarray) -> np.ndarray:
        """Moments float16 (M, channels, h, w) of rows ``indices`` (M,); of the mirrored image where ``flips`` (M,).

        Raises:
            UserError: a row has changed on disk since it was encoded.
        """
        result = np.empty((len(indices), *self.shape), np.float16)
        shard = np.searchsorted(self._starts, indices, side="right") - 1
        for number in np.unique(shard):
            for flipped, sources in self._shards.items():
                here = np.flatnonzero((shard == number) & (flips == flipped))
                if not len(here):
                    continue
                chosen = indices[here]
                result[here] = sources[number][chosen - self._starts[number]]
                wrong = checksums(result[here]) != self._sums[flipped][chosen]
                if wrong.any():
                    row = int(chosen[wrong][0] - self._starts[number])
                    path = self.folder / f"{self.names[number]}.{kinds(True)[flipped]}.npy"
                    raise _damaged(path, f"row {row} has changed")
        return result


def _opened(path: Path, opening: Callable[[Path], np.ndarray]) -> np.ndarray:
    try:
        return opening(path)
    except BROKEN as error:
        raise _damaged(path, str(error)) from error


def _damaged(path: Path, reason: str) -> UserError:
    rows = path.with_name(f"{path.name.split('.')[0]}.rows.npy")
    return UserError(
        f"the latents in {path} are damaged ({' '.join(reason.split())}); delete {rows.name} there and encode again, which "
        "makes this shard anew"
    )
