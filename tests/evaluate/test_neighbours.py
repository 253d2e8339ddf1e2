import math

import numpy as np
import pytest
from sklearn.metrics import pairwise_distances

from ditlab.errors import UserError
from ditlab.evaluate import precision_recall
from ditlab.evaluate.neighbours import squared_distances


def looped(real: np.ndarray, made: np.ndarray, k: int) -> tuple[float, float]:
    """The definition of Kynkaanniemi et al. 2019, equations 1 to 3, one pair of points at a time."""

    def radius(points: np.ndarray, index: int) -> float:
        others = (math.dist(points[index], points[j]) for j in range(len(points)) if j != index)
        return sorted(others)[k - 1]

    def share(queries: np.ndarray, manifold: np.ndarray) -> float:
        radii = [radius(manifold, j) for j in range(len(manifold))]
        inside = [any(math.dist(q, m) <= r for m, r in zip(manifold, radii, strict=True)) for q in queries]
        return sum(inside) / len(queries)

    return share(made, real), share(real, made)


@pytest.mark.parametrize("k", [1, 3, 5])
@pytest.mark.parametrize(("shift", "spread"), [(0.0, 1.0), (0.7, 1.0), (0.0, 0.3), (1.5, 2.0)])
def test_precision_and_recall_are_the_papers_definition(k: int, shift: float, spread: float):
    random = np.random.default_rng(0)
    real, made = random.normal(size=(40, 3)), random.normal(size=(55, 3)) * spread + shift
    assert precision_recall(real, made, k) == pytest.approx(looped(real, made, k))


def test_the_published_case_of_three_neighbours_is_the_default():
    random = np.random.default_rng(1)
    real, made = random.normal(size=(30, 2)), random.normal(size=(30, 2)) * 0.5
    assert precision_recall(real, made) == pytest.approx(looped(real, made, 3))
    assert precision_recall(real, made) != precision_recall(real, made, 1)


def test_a_narrow_model_is_precise_and_a_wide_one_recalls():
    random = np.random.default_rng(2)
    real = random.normal(size=(300, 4))
    precision, recall = precision_recall(real, random.normal(size=(300, 4)) * 0.3)
    assert precision > 0.9 > 0.3 > recall
    assert precision_recall(real, real * 0.3) == tuple(reversed(precision_recall(real * 0.3, real)))


@pytest.mark.parametrize("repeats", [1, 6])
def test_identical_sets_score_one_and_one(repeats: int):
    points = np.random.default_rng(3).normal(size=(50, 7)).repeat(repeats, axis=0)
    assert precision_recall(points, points.copy()) == (1.0, 1.0)


def test_sets_far_apart_score_nothing():
    random = np.random.default_rng(4)
    assert precision_recall(random.normal(size=(40, 3)), random.normal(size=(40, 3)) + 1000) == (0.0, 0.0)


def test_bytes_are_not_added_up_as_bytes():
    random = np.random.default_rng(5)
    real, made = (random.integers(0, 256, (30, 16), np.uint8) for _ in range(2))
    wide = precision_recall(real.astype(np.float64), made.astype(np.float64))
    assert precision_recall(real, made) == wide


def test_distances_are_scikit_learns():
    random = np.random.default_rng(6)
    a, b = random.normal(size=(9, 5)).astype(np.float32), random.normal(size=(4, 5)) + 3
    np.testing.assert_allclose(squared_distances(a, b), pairwise_distances(a.astype(float), b) ** 2, rtol=1e-9)
    assert (np.diag(squared_distances(a, a)) >= 0).all()


@pytest.mark.parametrize(("real", "made", "words"), [(3, 10, "3 real"), (10, 2, "2 made"), (0, 10, "0 real")])
def test_too_few_samples_are_refused(real: int, made: int, words: str):
    with pytest.raises(UserError, match=words) as caught:
        precision_recall(np.zeros((real, 2)), np.zeros((made, 2)))
    assert "more than 3" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_just_enough_samples_are_taken():
    points = np.arange(8.0).reshape(4, 2)
    assert precision_recall(points, points) == (1.0, 1.0)
