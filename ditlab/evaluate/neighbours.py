"""Precision and recall of generated samples from nearest neighbours (Kynkaanniemi et al. 2019)."""

from __future__ import annotations

import numpy as np

from ditlab.errors import UserError


def squared_distances(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Squared Euclidean distances, float64 (N, M), between rows of a (N, D) and b (M, D)."""
    a, b = a.astype(np.float64), b.astype(np.float64)
    return np.maximum((a**2).sum(1)[:, None] + (b**2).sum(1)[None] - 2 * a @ b.T, 0)


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

    def radii(features: np.ndarray) -> np.ndarray:
        return np.partition(squared_distances(features, features), k, axis=1)[:, k]  # the 0th is the sample itself

    between = squared_distances(real, made)
    precision = (between <= radii(real)[:, None]).any(axis=0).mean()
    recall = (between <= radii(made)[None]).any(axis=1).mean()
    return float(precision), float(recall)
