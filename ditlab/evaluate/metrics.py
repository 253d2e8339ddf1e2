"""Frechet distance, kernel distance and Inception score, computed from features, with their standard deviations."""

from __future__ import annotations

import numpy as np

from ditlab.errors import UserError
from ditlab.evaluate.statistics import BLOCK

SCORED = 5000  # images in a part of the Inception score
SUBSETS, SUBSET = 100, 1000  # of the kernel distance, as published
LEAST = 4  # images of each set, at least, in the kernel distance
ALL_PAIRS = 6000  # images of both sets up to which the kernel is computed once, for all pairs
RESAMPLES = 10  # of the Frechet distance: its standard deviation is then known to a quarter
Array = np.ndarray


def frechet_distance(mean_a: Array, covariance_a: Array, mean_b: Array, covariance_b: Array) -> float:
    """Squared Frechet (2-Wasserstein) distance of two Gaussians, which FID is (Heusel et al. 2017, equation 6).

    |mu_a - mu_b|^2 + tr(A + B - 2 (A B)^(1/2)). With A = R'R and B = S'S the trace of (A B)^(1/2) is the sum of the singular
    values of R S'. This takes no root of an asymmetric product or of a near-zero eigenvalue, so that singular covariances
    lose no digits. Means are (D,), covariances (D, D), symmetric and positive semidefinite up to rounding.
    """
    difference = np.asarray(mean_a, np.float64) - mean_b
    overlap = np.linalg.svd(_root(covariance_a) @ _root(covariance_b).T, compute_uv=False).sum()
    distance = difference @ difference + np.trace(covariance_a) + np.trace(covariance_b) - 2 * overlap
    return max(0.0, float(distance))


def frechet_spread(generated: Array, mean: Array, covariance: Array, seed: int = 0) -> float:
    """Standard deviation of a Frechet distance over sets of samples, by the bootstrap.

    Generated samples (N, D) are resampled with replacement, as weights; the reference, mean (D,) and covariance (D, D), is
    fixed. A resample costs N D^2 / 3 multiply-accumulates and the eigenvalues of one matrix.
    """
    root = _root(covariance)
    random = np.random.default_rng(seed)
    distances = []
    for _ in range(RESAMPLES):
        weights = random.multinomial(len(generated), np.full(len(generated), 1 / len(generated)))
        mean_generated, covariance_generated = _weighted(generated, weights)
        difference = mean_generated - mean
        squares = np.linalg.eigvalsh(root @ covariance_generated @ root.T)  # exact enough near zero for a spread
        overlap = np.sqrt(np.maximum(squares, 0)).sum()
        distances.append(difference @ difference + np.trace(covariance_generated) - 2 * overlap)
    return float(np.std(distances, ddof=1))


def kernel_distance(real: Array, generated: Array, seed: int = 0) -> tuple[float, float]:
    """Kernel distance, KID on Inception's features: the squared maximum mean discrepancy (Binkowski et al. 2018).

    The kernel is (x.y / D + 1)^3 and the estimate of a subset is unbiased. 100 subsets of 1000 samples are drawn from each set;
    from sets of fewer than 2000, subsets of half the smaller set, since subsets that are the whole set would not differ.
    Features (N, D) and (M, D) to mean and standard deviation over the subsets. UserError: fewer than LEAST samples in a set.
    """
    size = min(SUBSET, len(real) // 2, len(generated) // 2)
    if size < LEAST // 2:
        raise UserError(
            f"{len(real)} real and {len(generated)} generated samples are too few for a kernel distance; "
            f"at least {LEAST} of each"
        )
    random = np.random.default_rng(seed)
    counts = len(real), len(generated)
    drawn = [[random.choice(count, size, replace=False) for count in counts] for _ in range(SUBSETS)]
    if sum(counts) <= ALL_PAIRS:
        chosen = [np.zeros((SUBSETS, count)) for count in counts]
        for members, rows in zip(chosen, zip(*drawn, strict=True), strict=True):
            np.put_along_axis(members, np.stack(rows), 1, axis=1)
        values = discrepancies(real, generated, *chosen)
    else:
        ones = np.ones((1, size))
        values = [discrepancies(real[x], generated[y], ones, ones)[0] for x, y in drawn]
    return float(np.mean(values)), float(np.std(values))


def discrepancies(x: Array, y: Array, chosen_x: Array, chosen_y: Array) -> Array:
    """Unbiased estimates (S,) of the squared maximum mean discrepancy of subsets of x (N, D) and y (M, D).

    The kernel is (x.y / D + 1)^3. ``chosen_x`` (S, N) and ``chosen_y`` (S, M) are 1 for the members of each subset, all of
    one size, and 0 elsewhere: the sum over the pairs of a subset is a product with its row.
    """
    x, y, size = np.asarray(x, np.float64), np.asarray(y, np.float64), chosen_x[0].sum()

    def kernel(products: Array) -> Array:
        scaled = products / x.shape[1] + 1
        return scaled * scaled * scaled  # `** 3` calls pow for each pair

    def pairs(a: Array, b: Array, chosen_a: Array, chosen_b: Array) -> Array:
        return ((chosen_a @ kernel(a @ b.T)) * chosen_b).sum(axis=1)

    within = sum(
        pairs(a, a, rows, rows) - rows @ kernel((a * a).sum(axis=1)) for a, rows in ((x, chosen_x), (y, chosen_y))
    )
    return within / (size * (size - 1)) - 2 * pairs(x, y, chosen_x, chosen_y) / size**2


def inception_score(probabilities: Array, size: int = SCORED) -> tuple[float, float]:
    """Inception score (Salimans et al. 2016): exp(E_x KL(p(y|x) || p(y))); mean and standard deviation over parts.

    Probabilities are (N, K), rows sum to 1; parts of ``size`` in order, the last may be smaller. ADM's suite uses 5000.
    """
    scores = []
    for start in range(0, len(probabilities), size):
        classes = probabilities[start : start + size].astype(np.float64)
        # The mean divergence is the average's entropy minus the mean entropy, which needs no logarithm of 0 / 0.
        scores.append(np.exp(_entropy(classes.mean(axis=0)) - _entropy(classes).mean()))
    return float(np.mean(scores)), float(np.std(scores))


def _root(covariance: Array) -> Array:
    """R (rank, D) with R'R the covariance, without eigenvalues that are zero up to rounding."""
    values, vectors = np.linalg.eigh(np.asarray(covariance, np.float64))
    positive = values > len(values) * np.finfo(np.float64).eps * values[-1]
    return (vectors[:, positive] * np.sqrt(values[positive])).T


def _weighted(features: Array, weights: Array) -> tuple[Array, Array]:
    """Mean (D,) and covariance (D, D) of rows repeated as often as their integer weights."""
    total, width = weights.sum(), features.shape[1]
    drawn = np.flatnonzero(weights)
    blocks = np.split(drawn, range(BLOCK, len(drawn), BLOCK))
    mean = sum((weights[rows] @ features[rows].astype(np.float64) for rows in blocks), np.zeros(width)) / total
    scatter = np.zeros((width, width))
    for rows in blocks:
        centred = (features[rows] - mean) * np.sqrt(weights[rows])[:, None]
        scatter += centred.T @ centred
    return mean, scatter / (total - 1)


def _entropy(probabilities: Array) -> Array:
    """Entropy in nats over the last axis."""
    return -(probabilities * np.log(np.where(probabilities > 0, probabilities, 1))).sum(axis=-1)
