"""The encoded cache: moments of every image on disk, encoded once, read at random as memory-mapped rows.

A cache is a folder::

    manifest.json                 which images, which autoencoder, which preprocessing; complete or not
    00000.moments.npy             float16 (rows, channels, h, w)
    00000.flipped.npy             the same of the mirrored images, where the recipe flips
    00000.rows.npy                int64 (rows, 4): each row's image in the source, its label, and the CRC-32 of its
                                  moments and of its mirrored image's

Shards appear whole; a cache that was interrupted does the shards that are missing. Every row is checked when it is read.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ditlab import atomic
from ditlab.data import Dataset
from ditlab.errors import UserError
from ditlab.latents.autoencoder import Autoencoder
from ditlab.processes import ALONE, Processes

SHARD = 8192  # images a shard
MANIFEST = "manifest.json"
Progress = Callable[[int, int], None]


def to_unit(pixels: np.ndarray | Tensor, device: torch.device | str | None = None) -> Tensor:
    """Images uint8 (N, C, H, W) as float32 in [-1, 1], on ``device`` or where they are; they cross to it as bytes."""
    return torch.as_tensor(pixels).to(device).float().div_(127.5).sub_(1.0)


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


def _manifest(folder: Path) -> dict[str, object] | None:
    try:
        manifest = json.loads((folder / MANIFEST).read_text())
        if not isinstance(manifest, dict):
            raise ValueError("not an object")
        return manifest
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise UserError(f"{folder / MANIFEST} cannot be read ({error}); delete {folder} and encode again") from error


def _refuse_others(folder: Path, manifest: dict[str, object], wanted: dict[str, object]) -> None:
    reasons = {
        "data": f"other images or preprocessing ({manifest.get('describes')}; wanted: {wanted['describes']})",
        "autoencoder": f"another autoencoder ({manifest.get('kind')} {str(manifest.get('autoencoder'))[:8]})",
        "flip": f"data.flip {manifest.get('flip')}",
    }
    for key, reason in reasons.items():
        if manifest.get(key) != wanted[key]:
            raise UserError(f"the latent cache {folder} was made with {reason}; delete it or give another --latents")


def _npy(array: np.ndarray) -> bytes:
    import io

    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


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
        processes: that share the work.

    Returns:
        Images left out since they could not be read, each with its reason.

    Raises:
        UserError: the folder holds a cache made from other things, nothing was readable, or the disk is full.
    """
    wanted = identity(dataset, autoencoder, flip)
    complete = processes.agree(lambda: _begin(folder, wanted))
    if complete is not None:
        return complete
    autoencoder.to(device).eval()
    starts = range(0, len(dataset), SHARD)[processes.rank :: processes.size]
    mine = sum(min(SHARD, len(dataset) - start) for start in starts)
    done = 0
    for start in starts:
        images = range(start, min(start + SHARD, len(dataset)))
        name = folder / f"{start // SHARD:05d}"
        if not name.with_suffix(".rows.npy").exists():  # written last: where it stands, the shard is whole
            told = done  # the closure's own, since ``done`` moves on
            _encode_shard(
                dataset, autoencoder, name, images, flip, batch, device,
                lambda now, told=told: progress(told + now, mine) if progress else None,
            )  # fmt: skip
        done += len(images)
        if progress:
            progress(done, mine)
    processes.wait()
    return processes.agree(lambda: _complete(folder, wanted, dataset))


def _begin(folder: Path, wanted: dict[str, object]) -> tuple[str, ...] | None:
    """Make the cache's folder ready; gives the images left out where it is complete already."""
    manifest = _manifest(folder)
    if manifest is not None:
        _refuse_others(folder, manifest, wanted)
        names = {path.name for path in folder.glob("*.rows.npy")}
        if manifest.get("complete") and names >= set(manifest.get("rows", {})):  # type: ignore[call-overload]
            return tuple(manifest.get("left_out", ()))  # type: ignore[arg-type]
    atomic.write_file(folder / MANIFEST, json.dumps({**wanted, "complete": False}, indent=2) + "\n")
    atomic.clear_unfinished(folder)
    return None


def _complete(folder: Path, wanted: dict[str, object], dataset: Dataset) -> tuple[str, ...]:
    """Write the manifest of a cache whose shards are all there; gives the images left out."""
    paths = sorted(folder.glob("*.rows.npy"))
    rows = [np.load(path) for path in paths]
    kept = np.concatenate(rows)[:, 0] if rows else np.empty(0, np.int64)
    if not len(kept):
        raise UserError(f"no image of {dataset.describe()} could be read")
    missing = np.setdiff1d(np.arange(len(dataset)), kept)
    if len(missing):
        dataset.read(missing)  # others may have met them, or an earlier start: their reasons have to be told here
    left_out = tuple(dataset.left_out[index] for index in sorted(dataset.left_out))
    counts = {path.name: [len(shard), zlib.crc32(path.read_bytes())] for path, shard in zip(paths, rows, strict=True)}
    complete = {**wanted, "complete": True, "left_out": left_out, "rows": counts}
    atomic.write_file(folder / MANIFEST, json.dumps(complete, indent=2) + "\n")
    return left_out


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
            x = to_unit(pixels, device)
            moments["moments"].append(autoencoder.encode(x).cpu().numpy().astype(np.float16))
            if flip:
                moments["flipped"].append(autoencoder.encode(x.flip(3)).cpu().numpy().astype(np.float16))
        progress(min(start + batch, images.stop) - images.start)
    indices = np.concatenate(kept)
    sums = []
    for kind, parts in moments.items():
        array = np.ascontiguousarray(np.concatenate(parts)) if parts else None
        if array is not None:
            atomic.write_file(name.with_suffix(f".{kind}.npy"), _npy(array))
        sums.append(np.zeros(len(indices), np.int64) if array is None else _checksums(array))
    if len(indices):
        rows = np.stack([indices, dataset.labels[indices], *sums], axis=1)
        atomic.write_file(name.with_suffix(".rows.npy"), _npy(rows))


def _checksums(rows: np.ndarray) -> np.ndarray:
    """CRC-32 of each row, int64 (N,)."""
    return np.array([zlib.crc32(row) for row in rows], np.int64)


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
        manifest = _manifest(folder)
        if manifest is None or not manifest.get("complete"):
            raise UserError(f"no finished latent cache in {folder}: make it with `ditlab encode RECIPE`")
        _refuse_others(folder, manifest, wanted)
        if not manifest.get("rows"):
            raise UserError(f"the latent cache {folder} names no shards; delete {folder / MANIFEST} and encode again")
        self.names: list[str] = []
        rows: list[np.ndarray] = []
        self._shards: dict[bool, list[np.ndarray]] = {False: [], True: []}
        for name, (count, checksum) in manifest["rows"].items():  # type: ignore[attr-defined]
            self.names.append(name.removesuffix(".rows.npy"))
            rows.append(self._open(folder / name, count, checksum))
            for flipped in (False, True) if wanted["flip"] else (False,):
                self._shards[flipped].append(self._open(self._file(folder, len(rows) - 1, flipped), count))
        self.folder = folder
        self.fingerprint = f"{manifest['data']}-{manifest['autoencoder']}"
        self.left_out: tuple[str, ...] = tuple(manifest.get("left_out", ()))  # type: ignore[arg-type]
        table = np.concatenate(rows)
        self.labels = table[:, 1]
        self._sums = {False: table[:, 2], True: table[:, 3]}
        self.shape: tuple[int, ...] = self._shards[False][0].shape[1:]
        self._starts = np.cumsum([0, *(len(shard) for shard in rows)])

    def _file(self, folder: Path, shard: int, flipped: bool) -> Path:
        return folder / f"{self.names[shard]}.{'flipped' if flipped else 'moments'}.npy"

    @staticmethod
    def _open(path: Path, count: int, checksum: int | None = None) -> np.ndarray:
        """A shard's array: memory-mapped, or read whole and checked where its checksum is known."""
        try:
            if checksum is not None and zlib.crc32(path.read_bytes()) != checksum:
                raise ValueError("its checksum is another")
            array = np.load(path, mmap_mode=None if checksum is not None else "r")
            if len(array) != count:
                raise ValueError(f"{len(array)} rows, not {count}")
        except (OSError, ValueError, EOFError) as error:
            raise _damaged(path, str(error)) from error
        return array

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
                wrong = _checksums(result[here]) != self._sums[flipped][chosen]
                if wrong.any():
                    row = int(chosen[wrong][0] - self._starts[number])
                    raise _damaged(self._file(self.folder, int(number), flipped), f"row {row} has changed")
        return result


def _damaged(path: Path, reason: str) -> UserError:
    rows = path.with_name(f"{path.name.split('.')[0]}.rows.npy")
    return UserError(
        f"the latents in {path} are damaged ({reason.splitlines()[0]}); delete {rows.name} there and encode again, which "
        "makes this shard anew"
    )
