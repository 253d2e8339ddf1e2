"""Features of real images: computed once, over all processes, and cached."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ditlab.data import Dataset
from ditlab.errors import UserError
from ditlab.evaluate.features import FeatureNetwork, Features, concatenate
from ditlab.evaluate.metrics import LEAST
from ditlab.evaluate.sample_archive import npz_errors
from ditlab.evaluate.statistics import Reference, Statistics, read_statistics, write_statistics
from ditlab.runtime import files
from ditlab.runtime.distributed import ALONE, Processes

FORMAT = 1  # of the cache; to be raised when a network's features or their choice change under the same name
STORED = 65_536  # images, at most, whose features are stored, evenly over the data set: 335 MB of 1280 numbers each
BATCH = 256  # images read at a time
CPU_BATCH = 32  # images per forward pass on a CPU: twice as fast as 256, whose feature maps do not fit its caches
STATISTICS, FEATURES = ("whole", "even", "odd"), "features.npz"


@dataclass(frozen=True)
class RealImages:
    """A data set with the features that the metrics need."""

    dataset: Dataset
    statistics: Reference  # of the features of all images
    halves: tuple[Reference, Reference]  # of the images of even and of odd index; their distance is a distance's floor
    indices: np.ndarray  # of the images whose features are stored, int64 (K,), ascending
    pooled: np.ndarray  # their features, float32 (K, D)

    def describe(self) -> str:
        """One line: ``fashion: 60,000 images of 1x28x28, 10 classes``."""
        skipped = len(self.dataset) - self.statistics.count
        unreadable = f", {skipped:,} unreadable, skipped" if skipped else ""
        return f"{self.dataset.describe()}{unreadable}"

    def sample(self, count: int, half: int | None = None) -> np.ndarray:
        """At most ``count`` stored features, evenly over the data set; with ``half``, of one half only."""
        rows = np.arange(len(self.indices)) if half is None else np.flatnonzero(self.indices % 2 == half)
        return self.pooled[rows[evenly_spaced(len(rows), count)]]

    def images(self, rows: np.ndarray) -> np.ndarray:
        """The images of some of the stored features, uint8 (N, H, W, C). UserError: one can no longer be read."""
        pixels, found = self.dataset.read(self.indices[rows])
        if len(found) < len(rows):
            raise UserError(
                f"a real image can no longer be read ({next(iter(self.dataset.skipped.values()))}); repair or remove it"
            )
        return pixels.transpose(0, 2, 3, 1)


class _Half:
    """Accumulated statistics of one half."""

    def __init__(self, width: int):
        self.pooled = Statistics(width)
        self.spatial: Statistics | None = None

    def update(self, features: Features, rows: np.ndarray) -> None:
        self.pooled.update(features.pooled[rows])
        if features.spatial is not None:
            self.spatial = self.spatial or Statistics(features.spatial.shape[1])
            self.spatial.update(features.spatial[rows])

    def merge(self, other: _Half) -> None:
        self.pooled.merge(other.pooled)
        if other.spatial is not None:
            self.spatial = self.spatial or Statistics(other.spatial.width)
            self.spatial.merge(other.spatial)


@dataclass(frozen=True)
class _Share:
    """Results of one process: statistics of both halves, and the stored features batch by batch."""

    halves: tuple[_Half, _Half]
    indices: list[np.ndarray]
    pooled: list[np.ndarray]


def evenly_spaced(count: int, most: int) -> np.ndarray:
    """At most ``most`` of the numbers 0 to ``count`` - 1, ascending and evenly spaced."""
    chosen = min(count, most)
    return np.arange(chosen) * count // max(chosen, 1)


def extract(network: FeatureNetwork, images: np.ndarray) -> Features:
    """Features of images uint8 (N, H, W, C), N at least 1, in batches of a size that suits the device."""
    part = CPU_BATCH if network.device.type == "cpu" else BATCH
    return concatenate([network.extract(images[start : start + part]) for start in range(0, len(images), part)])


def real_features(
    dataset: Dataset,
    network: FeatureNetwork,
    processes: Processes = ALONE,
    progress: Callable[[int], None] = lambda done: None,
) -> RealImages | None:
    """Compute the features of a data set, each process a share, or read them from the cache folder.

    ``progress`` is called with the number of images that all processes have read. Returns None in all but the main process.
    UserError: too few images can be read, or the cache folder cannot be written.
    """
    folder = _cache_folder(dataset, network)
    real = _load(folder, dataset) if processes.is_main else None
    if processes.broadcast_from_main(lambda: real is not None):
        progress(len(dataset))
        return real
    processes.broadcast_from_main(lambda: _make_folder(folder))  # fails before hours of work
    shares = processes.gather(_compute_share(dataset, network, processes, progress))

    def finish() -> None:
        nonlocal real
        real = _merged(dataset, network, shares)
        _save(folder, real)

    processes.broadcast_from_main(finish)
    return real


def _compute_share(
    dataset: Dataset, network: FeatureNetwork, processes: Processes, progress: Callable[[int], None]
) -> _Share:
    """The results of every size-th batch, from this process's rank on."""
    count = len(dataset)
    share = _Share((_Half(network.width), _Half(network.width)), [], [])
    # Pairs of adjacent images are stored, so that both halves have as many.
    stored = np.zeros(count + 1, bool)
    first = 2 * evenly_spaced(-(-count // 2), STORED // 2)
    stored[first] = stored[first + 1] = True
    for start in range(processes.rank * BATCH, count, processes.size * BATCH):
        pixels, indices = dataset.read(np.arange(start, min(start + BATCH, count)))
        if len(indices):
            features = extract(network, pixels.transpose(0, 2, 3, 1))
            for parity, half in enumerate(share.halves):
                half.update(features, indices % 2 == parity)
            share.indices.append(indices[stored[indices]])
            share.pooled.append(features.pooled[stored[indices]])
        progress(min(start + processes.size * BATCH, count))
    return share


def _merged(dataset: Dataset, network: FeatureNetwork, shares: Sequence[_Share]) -> RealImages:
    even, odd = shares[0].halves
    for share in shares[1:]:
        even.merge(share.halves[0])
        odd.merge(share.halves[1])
    halves = _reference(even, dataset, network), _reference(odd, dataset, network)
    even.merge(odd)
    statistics = _reference(even, dataset, network)
    indices = np.concatenate([batch for share in shares for batch in share.indices])
    pooled = np.concatenate([batch for share in shares for batch in share.pooled])
    order = np.argsort(indices)
    return RealImages(dataset, statistics, halves, indices[order], pooled[order])


def _reference(half: _Half, dataset: Dataset, network: FeatureNetwork) -> Reference:
    if half.pooled.count < 2:
        raise UserError(
            f"{dataset.describe()}, {len(dataset.skipped)} of them unreadable: too few to measure against; at least {LEAST} "
            "needed"
        )
    spatial = (None, None) if half.spatial is None else (half.spatial.mean, half.spatial.covariance)
    mean, covariance, count = half.pooled.mean, half.pooled.covariance, half.pooled.count
    return Reference(mean, covariance, *spatial, count, network.distance, dataset.size, dataset.describe())


def _cache_folder(dataset: Dataset, network: FeatureNetwork) -> Path:
    name = hashlib.sha256(f"{FORMAT} {dataset.fingerprint} {network.distance}".encode()).hexdigest()[:24]
    return files.cache_home() / "features" / name


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"cannot cache features of real images in {folder} ({error.strerror or error}); "
            "set XDG_CACHE_HOME to a writable folder"
        ) from error


def _save(folder: Path, real: RealImages) -> None:
    """Write each file atomically; two processes that do so at a time write the same content."""
    for name, statistics in zip(STATISTICS, (real.statistics, *real.halves), strict=True):
        write_statistics(folder / f"{name}.npz", statistics)
    buffer = io.BytesIO()
    np.savez(buffer, indices=real.indices, pooled=real.pooled)
    files.write_file(folder / FEATURES, buffer.getvalue())


def _load(folder: Path, dataset: Dataset) -> RealImages | None:
    """The cached features; None, so that they are computed again, if a file is missing or damaged."""
    path = folder / FEATURES
    try:
        whole, *halves = (read_statistics(folder / f"{name}.npz") for name in STATISTICS)
        with npz_errors(path), np.load(path) as stored:  # an .npz has checksums
            return RealImages(dataset, whole, (halves[0], halves[1]), stored["indices"], stored["pooled"])
    except (UserError, KeyError):
        return None
