"""How one number goes with another, and how sure that is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Fit:
    """A straight line through points (x, y), by least squares.

    Attributes:
        correlation: Pearson's, -1 to 1.
        interval: the middle 95% of the correlation when points are drawn anew with replacement.
        rank: Spearman's correlation: whether y goes with x in order, whatever the curve.
        slope: of the line.
        error: its standard error.
        intercept: of the line.
        residual: standard deviation of the points about it.
        count: of points.
    """

    correlation: float
    interval: tuple[float, float]
    rank: float
    slope: float
    error: float
    intercept: float
    residual: float
    count: int

    def at(self, x: np.ndarray) -> np.ndarray:
        """The line's values at x."""
        return self.intercept + self.slope * x


def fit(x: Sequence[float] | np.ndarray, y: Sequence[float] | np.ndarray, seed: int = 0) -> Fit:
    """Fit a line.

    Raises:
        ValueError: fewer than three points, or all x alike.
    """
    a, b = np.asarray(x, np.float64), np.asarray(y, np.float64)
    if len(a) < 3 or np.ptp(a) == 0:
        raise ValueError("a line with an error needs three points at two places or more")
    centred = a - a.mean()
    slope = float(centred @ b / (centred @ centred))
    intercept = float(b.mean() - slope * a.mean())
    residual = float(np.sqrt(np.square(b - intercept - slope * a).sum() / (len(a) - 2)))
    random, drawn = np.random.default_rng(seed), []
    for _ in range(2000):
        rows = random.integers(len(a), size=len(a))
        if np.ptp(a[rows]) > 0 and np.ptp(b[rows]) > 0:
            drawn.append(_correlation(a[rows], b[rows]))
    low, high = np.quantile(drawn, [0.025, 0.975]) if drawn else (np.nan, np.nan)
    return Fit(
        _correlation(a, b),
        (float(low), float(high)),
        _correlation(_ranks(a), _ranks(b)),
        slope,
        residual / float(np.sqrt(centred @ centred)),
        intercept,
        residual,
        len(a),
    )


def _correlation(a: np.ndarray, b: np.ndarray) -> float:
    if np.ptp(a) == 0 or np.ptp(b) == 0:
        return 0.0
    return float(np.corrcoef(a, b)[0, 1])


def _ranks(values: np.ndarray) -> np.ndarray:
    """Places in order, ties sharing the mean of theirs."""
    return np.array([(values < value).sum() + ((values == value).sum() - 1) / 2 for value in values])
