"""Correlation and linear fit of two measured numbers, with their uncertainty."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Fit:
    """A least-squares line through ``count`` points (x, y), with the standard deviation of its residuals."""

    correlation: float  # Pearson's, -1 to 1
    interval: tuple[float, float]  # 95% bootstrap interval of the correlation
    rank: float  # Spearman's rank correlation
    slope: float
    error: float  # standard error of the slope
    intercept: float
    residual: float
    count: int

    def at(self, x: np.ndarray) -> np.ndarray:
        """The line's values at x."""
        return self.intercept + self.slope * x


def fit(x: Sequence[float] | np.ndarray, y: Sequence[float] | np.ndarray, seed: int = 0) -> Fit:
    """Fit a line; raises ValueError for fewer than three points or equal x."""
    a, b = np.asarray(x, np.float64), np.asarray(y, np.float64)
    if len(a) < 3 or np.ptp(a) == 0:
        raise ValueError("a line needs three points or more, at two values of x or more")
    centred = a - a.mean()
    slope = float(centred @ b / (centred @ centred))
    intercept = float(b.mean() - slope * a.mean())
    residual = float(np.sqrt(np.square(b - intercept - slope * a).sum() / (len(a) - 2)))
    random, resampled = np.random.default_rng(seed), []
    for _ in range(2000):
        rows = random.integers(len(a), size=len(a))
        if np.ptp(a[rows]) > 0 and np.ptp(b[rows]) > 0:
            resampled.append(_correlation(a[rows], b[rows]))
    low, high = np.quantile(resampled, [0.025, 0.975]) if resampled else (np.nan, np.nan)
    correlation, rank = _correlation(a, b), _correlation(_ranks(a), _ranks(b))
    error = residual / float(np.sqrt(centred @ centred))
    return Fit(correlation, (float(low), float(high)), rank, slope, error, intercept, residual, len(a))


def _correlation(a: np.ndarray, b: np.ndarray) -> float:
    if np.ptp(a) == 0 or np.ptp(b) == 0:
        return 0.0
    return float(np.corrcoef(a, b)[0, 1])


def _ranks(values: np.ndarray) -> np.ndarray:
    """Ranks; tied values share their mean rank."""
    return np.array([(values < value).sum() + ((values == value).sum() - 1) / 2 for value in values])
