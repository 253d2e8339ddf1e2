"""Nearest neighbours: precision and recall (Kynkaanniemi et al. 2019), and the distance of samples to the training images.

All pairs are compared in float64, one tile of the distance matrix at a time, so that memory does not grow with their number.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from ditlab.errors import UserError

TILE = 2048  # rows and columns: 32 MiB of distances, and the rows of features they come from
ROUNDING = 1e-12  # relative to a squared length: float64's rounding of a squared distance of thousands of features
PERCENT = 0.01


def squared_distances(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Squared Euclidean distances, float64 (N, M), between rows of a (N, D) and b (M, D)."""
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    distances = a @ b.T
    distances *= -2
    distances += _squared_lengths(a)[:, None]
    distances += _squared_lengths(b)
    return np.maximum(distances, 0, out=distances)


def precision_recall(real: np.ndarray, generated: np.ndarray, k: int = 3) -> tuple[float, float]:
    """Improved precision and recall (Kynkaanniemi et al. 2019, equations 1 to 3), as in ADM's suite.

    A sample lies in a set's manifold if its distance to some member is at most that member's distance to its own k-th
    neighbour in the set. Features (N, D) and (M, D) to the fraction of generated samples in the real manifold (precision),
    and of real ones in the generated manifold (recall). UserError: a set has k samples or fewer.
    """
    for name, features in (("real", real), ("generated", generated)):
        if len(features) <= k:
            raise UserError(
                f"{len(features)} {name} samples are too few for precision and recall with k = {k}; more than {k} needed"
            )
    real_radii, generated_radii = _squared_radii(real, k), _squared_radii(generated, k)
    in_real, in_generated = np.zeros(len(generated), bool), np.zeros(len(real), bool)
    for rows in _tiles(real):
        for columns in _tiles(generated):
            distances = squared_distances(real[rows], generated[columns])
            in_real[columns] |= (distances <= real_radii[rows, None]).any(axis=0)
            in_generated[rows] |= (distances <= generated_radii[columns]).any(axis=1)
    return float(in_real.mean()), float(in_generated.mean())


def nearest_neighbours(queries: np.ndarray, base: np.ndarray, k: int = 1) -> tuple[np.ndarray, np.ndarray]:
    """The k (at most M) nearest of ``base`` (M, D), at least one, for each query (N, D), nearest first.

    Returns indices, int64 (N, k), and Euclidean distances, float64 (N, k), exactly 0 for a copy.
    """
    k = min(k, len(base))
    indices, distances = np.zeros((len(queries), k), np.int64), np.zeros((len(queries), k))
    for rows in _tiles(queries):
        count = rows.stop - rows.start
        found, least = np.zeros((count, 0), np.int64), np.zeros((count, 0))
        for columns in _tiles(base):
            numbers = np.tile(np.arange(columns.start, columns.stop), (count, 1))
            candidates = np.concatenate([least, squared_distances(queries[rows], base[columns])], axis=1)
            chosen = _smallest(candidates, k)
            least = np.take_along_axis(candidates, chosen, axis=1)
            found = np.take_along_axis(np.concatenate([found, numbers], axis=1), chosen, axis=1)
        indices[rows] = found
        # A distance from products of rows is 0 only up to their rounding; that of the pairs found is computed directly.
        distances[rows] = np.linalg.norm(queries[rows, None].astype(np.float64) - base[found], axis=2)
    return indices, distances


def _smallest(values: np.ndarray, k: int) -> np.ndarray:
    """Columns of the k smallest values of each row, int64 (N, min(k, M)), in order; the first of equal ones."""
    values, columns = values.copy(), []
    for _ in range(min(k, values.shape[1])):
        columns.append(values.argmin(axis=1))
        np.put_along_axis(values, columns[-1][:, None], np.inf, axis=1)
    return np.stack(columns, axis=1)


@dataclass(frozen=True)
class Memorisation:
    """Distances of generated samples to the training images, compared with those of held-out real images.

    ``closer`` is the fraction of pairs (generated, held-out) in which the generated one is closer, ties counted half: 0.5
    for a model of the same distribution that copies nothing, up to 1 for one that copies. ``copies`` is the fraction of
    generated samples closer than the closest 1% of held-out ones; without copying 0.01.
    """

    nearest: np.ndarray  # index of the nearest training sample of each generated one, (M,)
    distance: np.ndarray  # and the distance to it, (M,)
    held_out: np.ndarray  # distance of each held-out sample to its nearest training sample, (H,)
    closer: float
    copies: float


def memorisation(generated: np.ndarray, train: np.ndarray, held_out: np.ndarray) -> Memorisation:
    """Whether generated samples are closer to the training images than new real images are (after Meehan et al. 2020).

    Features (M, D), (N, D) and, of images of the same distribution that were not trained on, (H, D).
    UserError: no generated or training samples, or fewer than 100 held-out ones, of which 1% is none.
    """
    needed = (("generated", generated, 1), ("training", train, 1), ("held-out", held_out, round(1 / PERCENT)))
    for name, features, least in needed:
        if len(features) < least:
            raise UserError(
                f"{len(features)} {name} samples are too few to measure memorisation; at least {least} needed"
            )
    index, distance = (array[:, 0] for array in nearest_neighbours(generated, train))
    of_held_out = nearest_neighbours(held_out, train)[1][:, 0]
    ordered = np.sort(of_held_out)
    # Per generated sample: the number of held-out ones that are closer, and that are at least as close.
    below, up_to = (np.searchsorted(ordered, distance, side) for side in ("left", "right"))
    closer = 1 - (below + up_to).mean() / (2 * len(ordered))
    # Held-out samples at the same distance, as duplicates in the data have, share their ranks.
    copies = np.clip((PERCENT * len(ordered) - below) / np.maximum(up_to - below, 1), 0, 1).mean()
    return Memorisation(index, distance, of_held_out, float(closer), float(copies))


def _tiles(features: np.ndarray) -> Iterator[slice]:
    for start in range(0, len(features), TILE):
        yield slice(start, min(start + TILE, len(features)))


def _squared_lengths(features: np.ndarray) -> np.ndarray:
    return np.einsum("nd,nd->n", features, features)


def _squared_radii(features: np.ndarray, k: int) -> np.ndarray:
    """Squared distance of each row (N, D) to its k-th neighbour, plus a bound on its rounding, so that ties are within."""
    smallest = np.full((len(features), k + 1), np.inf)  # the 0th is the sample itself

    def update(rows: slice, distances: np.ndarray) -> None:
        candidates = np.concatenate([smallest[rows], distances], axis=1)
        candidates.partition(k, axis=1)
        smallest[rows] = candidates[:, : k + 1]

    for rows in _tiles(features):
        for columns in _tiles(features[: rows.stop]):  # every pair of tiles once
            distances = squared_distances(features[rows], features[columns])
            update(rows, distances)
            if rows != columns:
                update(columns, distances.T)
    radii = smallest[:, k]
    lengths = np.concatenate([_squared_lengths(features[rows].astype(np.float64)) for rows in _tiles(features)])
    return radii + ROUNDING * (radii + lengths)
