"""Real images as features: seen once by the feature network, over all processes, and kept for the next time."""

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
from ditlab.evaluate.sample_archive import reading
from ditlab.evaluate.statistics import Reference, Statistics, read_statistics, write_statistics
from ditlab.runtime import files
from ditlab.runtime.distributed import ALONE, Processes

FORMAT = 1  # of what is kept: another number where a network's features or their choice change under the same name
KEPT = 65_536  # images whose own features are kept, evenly over the data set: 335 MB of 1280 numbers each
BATCH = 256  # images read at a time
PART = 32  # images a network on a CPU sees at a time: twice as fast as 256, whose maps its caches cannot hold
STATISTICS = ("whole", "even", "odd")


@dataclass(frozen=True)
class Real:
    """A data set as the metrics need it.

    Attributes:
        dataset: the images themselves.
        whole: statistics of all of them.
        halves: of those with even and with odd index; how far apart they are is the floor of a distance.
        indices: of the images whose own features are kept, int64 (K,), rising.
        pooled: their features, float32 (K, D).
    """

    dataset: Dataset
    whole: Reference
    halves: tuple[Reference, Reference]
    indices: np.ndarray
    pooled: np.ndarray

    def describe(self) -> str:
        """Which images these are: ``fashion: 60,000 images of 1x28x28, 10 classes, train``."""
        skipped = len(self.dataset) - self.whole.count
        unreadable = f", {skipped:,} left out, unreadable" if skipped else ""
        return f"{self.dataset.describe()}, {self.dataset.config.split}{unreadable}"

    def sample(self, count: int, half: int | None = None) -> np.ndarray:
        """Features of at most ``count`` kept images, evenly over the data set; with ``half`` of those of one half only."""
        rows = np.arange(len(self.indices)) if half is None else np.flatnonzero(self.indices % 2 == half)
        return self.pooled[rows[evenly(len(rows), count)]]

    def images(self, rows: np.ndarray) -> np.ndarray:
        """The images of some of the kept features, uint8 (N, H, W, C).

        Raises:
            UserError: one could be read when its features were computed, and no longer can.
        """
        pixels, found = self.dataset.read(self.indices[rows])
        if len(found) < len(rows):
            raise UserError(
                f"a real image was readable when the network saw it and no longer is "
                f"({next(iter(self.dataset.skipped.values()))}); mend it, or take it out"
            )
        return pixels.transpose(0, 2, 3, 1)


class _Half:
    """The statistics of one half while it is being seen."""

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
    """What one process has seen: statistics of both halves, and the kept features batch by batch."""

    halves: tuple[_Half, _Half]
    indices: list[np.ndarray]
    pooled: list[np.ndarray]


def evenly(count: int, most: int) -> np.ndarray:
    """At most ``most`` of the numbers 0 to ``count`` - 1, rising, as far apart as they can be."""
    chosen = min(count, most)
    return np.arange(chosen) * count // max(chosen, 1)


def extract(network: FeatureNetwork, images: np.ndarray) -> Features:
    """Features of images uint8 (N, H, W, C), N at least 1, as many at a time as the network's device is fast with."""
    part = PART if network.device.type == "cpu" else BATCH
    return concatenate([network.extract(images[start : start + part]) for start in range(0, len(images), part)])


def real_features(
    dataset: Dataset,
    network: FeatureNetwork,
    processes: Processes = ALONE,
    tell: Callable[[int], None] = lambda done: None,
) -> Real | None:
    """Show a data set to a feature network, each process its share; from the cache folder where that was done before.

    Args:
        dataset: the images.
        network: on the device it is to run on.
        processes: that share the work.
        tell: told how many images have been seen by all processes, now and then.

    Returns:
        The data set's features in the first process, nothing in the others.

    Raises:
        UserError: too few images can be read, or the cache folder cannot be written.
    """
    place = _place(dataset, network)
    real = _load(place, dataset) if processes.is_main else None
    if processes.broadcast_from_main(lambda: real is not None):
        tell(len(dataset))
        return real
    processes.broadcast_from_main(lambda: _make_folder(place))  # said before hours of work
    everyone = processes.gather(_share(dataset, network, processes, tell))

    def finish() -> None:
        nonlocal real
        real = _merged(dataset, network, everyone)
        _save(place, real)

    processes.broadcast_from_main(finish)
    return real


def _share(dataset: Dataset, network: FeatureNetwork, processes: Processes, tell: Callable[[int], None]) -> _Share:
    """Every size-th batch of the data set, from that of this process's rank on."""
    count = len(dataset)
    share = _Share((_Half(network.width), _Half(network.width)), [], [])
    # Neighbours are kept together, so that there are as many of either half.
    kept = np.zeros(count + 1, bool)
    first = 2 * evenly(-(-count // 2), KEPT // 2)
    kept[first] = kept[first + 1] = True
    for start in range(processes.rank * BATCH, count, processes.size * BATCH):
        pixels, indices = dataset.read(np.arange(start, min(start + BATCH, count)))
        if len(indices):
            features = extract(network, pixels.transpose(0, 2, 3, 1))
            for parity, half in enumerate(share.halves):
                half.update(features, indices % 2 == parity)
            share.indices.append(indices[kept[indices]])
            share.pooled.append(features.pooled[kept[indices]])
        tell(min(start + processes.size * BATCH, count))
    return share


def _merged(dataset: Dataset, network: FeatureNetwork, everyone: Sequence[_Share]) -> Real:
    even, odd = everyone[0].halves
    for share in everyone[1:]:
        even.merge(share.halves[0])
        odd.merge(share.halves[1])
    halves = _reference(even, dataset, network), _reference(odd, dataset, network)
    even.merge(odd)
    whole = _reference(even, dataset, network)
    indices = np.concatenate([batch for share in everyone for batch in share.indices])
    pooled = np.concatenate([batch for share in everyone for batch in share.pooled])
    order = np.argsort(indices)
    return Real(dataset, whole, halves, indices[order], pooled[order])


def _reference(half: _Half, dataset: Dataset, network: FeatureNetwork) -> Reference:
    if half.pooled.count < 2:
        raise UserError(
            f"{dataset.describe()}, of which {len(dataset.skipped)} cannot be read: too few to measure against; a "
            "covariance of each half needs 2, a distance many more"
        )
    places = (None, None) if half.spatial is None else (half.spatial.mean, half.spatial.covariance)
    mean, covariance, count = half.pooled.mean, half.pooled.covariance, half.pooled.count
    return Reference(mean, covariance, *places, count, network.distance, dataset.shape[1:], dataset.describe())


def _place(dataset: Dataset, network: FeatureNetwork) -> Path:
    name = hashlib.sha256(f"{FORMAT} {dataset.fingerprint} {network.distance}".encode()).hexdigest()[:24]
    return files.cache_home() / "features" / name


def _make_folder(place: Path) -> None:
    try:
        place.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"features of real images cannot be kept in {place} ({error.strerror or error}); "
            "set XDG_CACHE_HOME to a folder that can be written"
        ) from error


def _save(place: Path, real: Real) -> None:
    """Each file appears whole; two runs that make the same ones at a time write the same."""
    for name, statistics in zip(STATISTICS, (real.whole, *real.halves), strict=True):
        write_statistics(place / f"{name}.npz", statistics)
    buffer = io.BytesIO()
    np.savez(buffer, indices=real.indices, pooled=real.pooled)
    files.write_file(place / "kept.npz", buffer.getvalue())


def _load(place: Path, dataset: Dataset) -> Real | None:
    """What is kept there; nothing where a file is missing or damaged, and all is made anew."""
    path = place / "kept.npz"
    try:
        whole, *halves = (read_statistics(place / f"{name}.npz") for name in STATISTICS)
        with reading(path), np.load(path) as kept:  # an .npz carries checksums
            return Real(dataset, whole, (halves[0], halves[1]), kept["indices"], kept["pooled"])
    except (UserError, KeyError):
        return None
