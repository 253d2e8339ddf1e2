"""Linear fits against scipy."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.stats

from ditlab.study.fit import fit


def test_a_fit_is_scipys() -> None:
    random = np.random.default_rng(0)
    x = random.normal(size=12)
    y = 3 - 2 * x + random.normal(scale=0.7, size=12)
    ours, (slope, intercept, correlation, _, error) = fit(x, y), scipy.stats.linregress(x, y)
    assert ours.slope == pytest.approx(slope)
    assert ours.intercept == pytest.approx(intercept)
    assert ours.error == pytest.approx(error)
    assert ours.correlation == pytest.approx(correlation)
    assert ours.residual == pytest.approx(np.sqrt(np.square(y - ours.at(x)).sum() / 10))
    assert ours.count == 12


def test_ranks_with_ties_are_spearmans() -> None:
    x, y = [1, 1, 2, 3, 3, 3, 9], [5, 4, 4, 4, 2, 2, 1]
    assert fit(x, y).rank == pytest.approx(scipy.stats.spearmanr(x, y)[0])


def test_a_correlations_interval_holds_it_and_narrows_with_points() -> None:
    random, widths = np.random.default_rng(1), []
    for count in (10, 100):
        x = random.normal(size=count)
        found = fit(x, -x + random.normal(scale=0.5, size=count))
        low, high = found.interval
        assert -1 <= low < found.correlation < high <= 1
        widths.append(high - low)
    assert widths[1] < widths[0] / 2
    reference = scipy.stats.bootstrap(
        (x, -x + random.normal(scale=0.5, size=100)),
        lambda a, b: np.corrcoef(a, b)[0, 1],
        paired=True,
        vectorized=False,
        method="percentile",
        n_resamples=1000,
        rng=np.random.default_rng(0),
    )
    assert widths[1] == pytest.approx(reference.confidence_interval.high - reference.confidence_interval.low, rel=0.5)


def test_too_few_points_or_equal_x_are_refused() -> None:
    for x in ([1.0, 2.0], [3.0, 3.0, 3.0, 3.0]):
        with pytest.raises(ValueError, match="three points or more, at two values of x or more"):
            fit(x, list(range(len(x))))
    assert fit([1, 2, 3], [5, 5, 5]).correlation == 0
