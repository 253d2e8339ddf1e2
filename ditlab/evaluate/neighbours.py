"""Nearest neighbours: precision and recall (Kynkaanniemi et al. 2019), and how close samples are to the training images.

All pairs are compared in float64, a tile of them at a time, so that memory does not grow with their number.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from ditlab.errors import UserError

TILE = 2048  # rows and columns: 32 MiB of distances, and the rows of features that make them
ROUNDING = 1e-12  # of a squared length: what float64 may lose in a squared distance of thousands of features
PERCENT = 0.01


def squared_distances(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Squared Euclidean distances, float64 (N, M), between rows of a (N, D) and b (M, D)."""
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    distances = a @ b.T
    distances *= -2
    distances += _squared_lengths(a)[:, None]
    distances += _squared_lengths(b)
    return np.maximum(distances, 0, out=distances)


def precision_recall(real: np.ndarray, made: np.ndarray, k: int = 3) -> tuple[float, float]:
    """How many made samples look real, and how many real ones could have been made.

    A sample lies in a set's manifold if some member is nearer to it than to that member's own k-th neighbour in the set.

    Args:
        real: features of real images (N, D).
        made: features of made ones (M, D).
        k: which neighbour.

    Returns:
        The share of made samples in the real manifold (precision), and of real ones in the made manifold (recall).

    Raises:
        UserError: a set has k samples or fewer.
    """
    for name, features in (("real", real), ("made", made)):
        if len(features) <= k:
            raise UserError(
                f"{len(features)} {name} samples are too few for precision and recall with k = {k}; more than {k}"
            )
    real_radii, made_radii = _squared_radii(real, k), _squared_radii(made, k)
    looks_real, could_be_made = np.zeros(len(made), bool), np.zeros(len(real), bool)
    for rows in _slices(real):
        for columns in _slices(made):
            between = squared_distances(real[rows], made[columns])
            looks_real[columns] |= (between <= real_radii[rows, None]).any(axis=0)
            could_be_made[rows] |= (between <= made_radii[columns]).any(axis=1)
    return float(looks_real.mean()), float(could_be_made.mean())


def nearest(queries: np.ndarray, base: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Each query's nearest neighbour.

    Args:
        queries: features (N, D).
        base: features (M, D), at least one.

    Returns:
        Its index in ``base``, int64 (N,), and its Euclidean distance, float64 (N,), 0 for an exact copy.
    """
    index, least = np.zeros(len(queries), np.int64), np.full(len(queries), np.inf)
    for rows in _slices(queries):
        for columns in _slices(base):
            squared = squared_distances(queries[rows], base[columns])
            closest = squared.argmin(axis=1)
            squared = np.take_along_axis(squared, closest[:, None], axis=1)[:, 0]
            index[rows] = np.where(squared < least[rows], columns.start + closest, index[rows])
            least[rows] = np.minimum(squared, least[rows])
    # A distance from products of rows is 0 up to their rounding only; of the pairs that were found it is taken directly.
    parts = [np.linalg.norm(queries[rows].astype(np.float64) - base[index[rows]], axis=1) for rows in _slices(queries)]
    return index, np.concatenate([np.empty(0), *parts])


@dataclass(frozen=True)
class Memorisation:
    """How close made samples are to the training images, beside how close real images are that were held out.

    Attributes:
        nearest: of each made sample, the index of its nearest training sample, (M,).
        distance: and how far away that is, (M,).
        held_out: the distance of each held-out sample to its nearest training sample, (H,).
        closer: the share of pairs (made, held-out) in which the made one is the closer, ties counted half; a model that
            makes new images of the same distribution has 0.5, one that copies up to 1.
        copies: the share of made samples closer than the closest 1% of held-out ones; such a model has 0.01.
    """

    nearest: np.ndarray
    distance: np.ndarray
    held_out: np.ndarray
    closer: float
    copies: float


def memorisation(made: np.ndarray, train: np.ndarray, held_out: np.ndarray) -> Memorisation:
    """Whether made samples lie closer to the training images than new real images do (after Meehan et al. 2020).

    Args:
        made: features (M, D).
        train: features of the images the model was trained on (N, D).
        held_out: features of images of the same distribution that it never saw (H, D).

    Raises:
        UserError: no made or training samples, or fewer than 100 held-out ones, of which 1% is none.
    """
    for name, features, least in (
        ("made", made, 1),
        ("training", train, 1),
        ("held-out", held_out, round(1 / PERCENT)),
    ):
        if len(features) < least:
            raise UserError(
                f"{len(features)} {name} samples are too few to look for memorised images; at least {least}"
            )
    index, distance = nearest(made, train)
    _, beside = nearest(held_out, train)
    ordered = np.sort(beside)
    below, up_to = (
        np.searchsorted(ordered, distance, side) for side in ("left", "right")
    )  # how many are closer; or as close
    closer = 1 - (below + up_to).mean() / (2 * len(beside))
    # A made sample's rank among the held-out ones; where many are as close, as copies in the data are, it has all their ranks.
    copies = np.clip((PERCENT * len(beside) - below) / np.maximum(up_to - below, 1), 0, 1).mean()
    return Memorisation(index, distance, beside, float(closer), float(copies))


def _slices(features: np.ndarray) -> Iterator[slice]:
    for start in range(0, len(features), TILE):
        yield slice(start, min(start + TILE, len(features)))


def _squared_lengths(features: np.ndarray) -> np.ndarray:
    return np.einsum("nd,nd->n", features, features)


def _squared_radii(features: np.ndarray, k: int) -> np.ndarray:
    """Squared distance of each row (N, D) to its k-th neighbour, and rounding's share, so that ties are always within."""
    kept = np.full((len(features), k + 1), np.inf)  # the smallest so far; the 0th is the sample itself

    def keep(rows: slice, distances: np.ndarray) -> None:
        candidates = np.concatenate([kept[rows], distances], axis=1)
        candidates.partition(k, axis=1)
        kept[rows] = candidates[:, : k + 1]

    for rows in _slices(features):
        for columns in _slices(features[: rows.stop]):  # every pair of tiles once
            distances = squared_distances(features[rows], features[columns])
            keep(rows, distances)
            if rows != columns:
                keep(columns, distances.T)
    radii = kept[:, k]
    lengths = np.concatenate([_squared_lengths(features[rows].astype(np.float64)) for rows in _slices(features)])
    return radii + ROUNDING * (radii + lengths)
