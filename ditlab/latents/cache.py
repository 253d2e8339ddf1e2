"""The encoded cache: moments of every image on disk, encoded once, read at random as memory-mapped rows.

A cache is a folder::

    manifest.json                 which images, which autoencoder, which preprocessing; complete or not
    00000.moments.npy             float16 (rows, channels, h, w)
    00000.flipped.npy             the same of the mirrored images, where the recipe flips
    00000.rows.npy                int64 (rows, 2): each row's image in the source, and its label

Shards appear whole; a cache that was interrupted goes on after its last whole shard.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ditlab import atomic
from ditlab.data import Dataset
from ditlab.errors import UserError
from ditlab.latents.autoencoder import Autoencoder

SHARD = 8192  # images a shard
MANIFEST = "manifest.json"
Progress = Callable[[int, int], None]


def to_unit(pixels: np.ndarray, device: torch.device | str = "cpu") -> Tensor:
    """Images uint8 (N, C, H, W) as float32 in [-1, 1]."""
    return torch.from_numpy(pixels).to(device).float().div_(127.5).sub_(1.0)


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
) -> tuple[str, ...]:
    """Encode every image of ``dataset`` into ``folder``; does only what is still missing.

    Args:
        dataset: the images.
        autoencoder: makes the moments; left on ``device``, in evaluation mode.
        folder: the cache; another cache there is never overwritten.
        flip: encode the mirrored images too.
        batch: images at a time.
        device: where the encoder runs.
        progress: called with images done and images in all.

    Returns:
        Images left out since they could not be read, each with its reason.

    Raises:
        UserError: the folder holds a cache made from other things, nothing was readable, or the disk is full.
    """
    wanted = identity(dataset, autoencoder, flip)
    manifest = _manifest(folder)
    if manifest is not None:
        _refuse_others(folder, manifest, wanted)
        if manifest.get("complete"):
            return tuple(manifest.get("left_out", ()))  # type: ignore[arg-type]
    else:
        atomic.write_file(folder / MANIFEST, json.dumps({**wanted, "complete": False}, indent=2) + "\n")
    atomic.clear_unfinished(folder)
    autoencoder.to(device).eval()
    for start in range(0, len(dataset), SHARD):
        stop = min(start + SHARD, len(dataset))
        name = folder / f"{start // SHARD:05d}"
        if not name.with_suffix(".rows.npy").exists():  # written last: where it stands, the shard is whole
            _encode_shard(dataset, autoencoder, name, range(start, stop), flip, batch, device, progress)
        if progress:
            progress(stop, len(dataset))
    rows = [np.load(path) for path in sorted(folder.glob("*.rows.npy"))]
    kept = np.concatenate(rows)[:, 0] if rows else np.empty(0, np.int64)
    if not len(kept):
        raise UserError(f"no image of {dataset.describe()} could be read")
    missing = np.setdiff1d(np.arange(len(dataset)), kept)
    if len(missing):
        dataset.read(missing)  # a resumed encoding has to be told again why earlier ones were left out
    left_out = tuple(dataset.left_out[index] for index in sorted(dataset.left_out))
    complete = {**wanted, "complete": True, "left_out": left_out, "shards": [len(shard) for shard in rows]}
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
    progress: Progress | None,
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
        if progress:
            progress(min(start + batch, images.stop), len(dataset))
    indices = np.concatenate(kept)
    if not len(indices):
        return
    for kind, parts in moments.items():
        if parts:
            atomic.write_file(name.with_suffix(f".{kind}.npy"), _npy(np.concatenate(parts)))
    atomic.write_file(name.with_suffix(".rows.npy"), _npy(np.stack([indices, dataset.labels[indices]], axis=1)))


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
        try:
            rows = [np.load(path) for path in sorted(folder.glob("*.rows.npy"))]
            self._shards = [np.load(path, mmap_mode="r") for path in sorted(folder.glob("*.moments.npy"))]
            self._flipped = [np.load(path, mmap_mode="r") for path in sorted(folder.glob("*.flipped.npy"))]
        except (OSError, ValueError, EOFError) as error:
            raise UserError(f"the latent cache {folder} is damaged ({error}); delete it and encode again") from error
        kinds = [rows, self._shards, self._flipped] if wanted["flip"] else [rows, self._shards]
        if any([len(shard) for shard in kind] != manifest.get("shards") for kind in kinds):
            raise UserError(f"the latent cache {folder} is damaged (shards are missing); delete it and encode again")
        self.fingerprint = f"{manifest['data']}-{manifest['autoencoder']}"
        self.left_out: tuple[str, ...] = tuple(manifest.get("left_out", ()))  # type: ignore[arg-type]
        self.labels = np.concatenate(rows)[:, 1]
        self.shape: tuple[int, ...] = self._shards[0].shape[1:]
        self._starts = np.cumsum([0, *(len(shard) for shard in self._shards)])

    def __len__(self) -> int:
        return len(self.labels)

    def read(self, indices: np.ndarray, flips: np.ndarray) -> np.ndarray:
        """Moments float16 (M, channels, h, w) of rows ``indices`` (M,); of the mirrored image where ``flips`` (M,)."""
        result = np.empty((len(indices), *self.shape), np.float16)
        shard = np.searchsorted(self._starts, indices, side="right") - 1
        for number in np.unique(shard):
            for flipped, source in ((False, self._shards), (True, self._flipped)):
                here = np.flatnonzero((shard == number) & (flips == flipped))
                if len(here):
                    result[here] = source[number][indices[here] - self._starts[number]]
        return result
