import math
import tracemalloc
from collections.abc import Callable

import numpy as np
import pytest
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import pairwise_distances
from sklearn.neighbors import NearestNeighbors

from ditlab.errors import UserError
from ditlab.evaluate import neighbours, precision_recall
from ditlab.evaluate.neighbours import memorisation, nearest_neighbours, squared_distances


def looped(real: np.ndarray, generated: np.ndarray, k: int) -> tuple[float, float]:
    """The definition of Kynkaanniemi et al. 2019, equations 1 to 3, one pair of points at a time."""

    def radius(points: np.ndarray, index: int) -> float:
        others = (math.dist(points[index], points[j]) for j in range(len(points)) if j != index)
        return sorted(others)[k - 1]

    def share(queries: np.ndarray, manifold: np.ndarray) -> float:
        radii = [radius(manifold, j) for j in range(len(manifold))]
        inside = [any(math.dist(q, m) <= r for m, r in zip(manifold, radii, strict=True)) for q in queries]
        return sum(inside) / len(queries)

    return share(generated, real), share(real, generated)


@pytest.mark.parametrize("k", [1, 3, 5])
@pytest.mark.parametrize(("shift", "spread"), [(0.0, 1.0), (0.7, 1.0), (0.0, 0.3), (1.5, 2.0)])
def test_precision_and_recall_are_the_papers_definition(k: int, shift: float, spread: float):
    random = np.random.default_rng(0)
    real, generated = random.normal(size=(40, 3)), random.normal(size=(55, 3)) * spread + shift
    assert precision_recall(real, generated, k) == pytest.approx(looped(real, generated, k))


def test_the_published_case_of_three_neighbours_is_the_default():
    random = np.random.default_rng(1)
    real, generated = random.normal(size=(30, 2)), random.normal(size=(30, 2)) * 0.5
    assert precision_recall(real, generated) == pytest.approx(looped(real, generated, 3))
    assert precision_recall(real, generated) != precision_recall(real, generated, 1)


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
    real, generated = (random.integers(0, 256, (30, 16), np.uint8) for _ in range(2))
    wide = precision_recall(real.astype(np.float64), generated.astype(np.float64))
    assert precision_recall(real, generated) == wide


def test_distances_are_scikit_learns():
    random = np.random.default_rng(6)
    a, b = random.normal(size=(9, 5)).astype(np.float32), random.normal(size=(4, 5)) + 3
    np.testing.assert_allclose(squared_distances(a, b), pairwise_distances(a.astype(float), b) ** 2, rtol=1e-9)
    assert (np.diag(squared_distances(a, a)) >= 0).all()


@pytest.mark.parametrize(("real", "generated", "words"), [(3, 10, "3 real"), (10, 2, "2 generated"), (0, 10, "0 real")])
def test_too_few_samples_are_refused(real: int, generated: int, words: str):
    with pytest.raises(UserError, match=words) as caught:
        precision_recall(np.zeros((real, 2)), np.zeros((generated, 2)))
    assert "more than 3" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_just_enough_samples_are_taken():
    points = np.arange(8.0).reshape(4, 2)
    assert precision_recall(points, points) == (1.0, 1.0)


@pytest.fixture(params=[1, 7, 16, 40])
def tile(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setattr(neighbours, "TILE", request.param)
    return request.param


@pytest.mark.parametrize("k", [1, 3])
def test_tiles_of_any_size_give_the_papers_definition(tile: int, k: int):
    random = np.random.default_rng(0)
    real, generated = random.normal(size=(40, 3)), random.normal(size=(55, 3)) * 0.8 + 0.3
    assert precision_recall(real, generated, k) == pytest.approx(looped(real, generated, k))


POINTS = st.lists(st.tuples(*[st.integers(0, 3)] * 2), min_size=4, max_size=12)


@given(POINTS, POINTS, st.integers(1, 3), st.floats(0.1, 10))
def test_ties_and_copies_are_within(real: list[tuple], generated: list[tuple], k: int, unit: float):
    x, y = np.array(real, float), np.array(generated, float)  # on a grid, where most distances occur many times
    exact = looped(x, y, k)
    assert precision_recall(x, y, k) == pytest.approx(exact)
    turn = np.linalg.qr(np.random.default_rng(0).normal(size=(2, 2)))[0] * unit
    assert precision_recall(x @ turn + 5, y @ turn + 5, k) == pytest.approx(exact)


def test_memory_does_not_grow_with_the_pairs(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(neighbours, "TILE", 256)
    real, generated = (np.random.default_rng(seed).normal(size=(3000, 4)).astype(np.float32) for seed in (0, 1))
    tracemalloc.start()
    try:
        precision_recall(real, generated)
        nearest_neighbours(generated, real, 2)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 8 * 2**20  # all pairs would be 72 MB


@pytest.mark.parametrize("k", [1, 3, 50])
def test_nearest_neighbours_are_scikit_learns(tile: int, k: int):
    random = np.random.default_rng(0)
    queries, base = random.normal(size=(45, 6)).astype(np.float32), random.normal(size=(38, 6)).astype(np.float32)
    index, distance = nearest_neighbours(queries, base, k)
    reference = NearestNeighbors(n_neighbors=min(k, 38), algorithm="brute").fit(base.astype(np.float64))
    expected_distance, expected_index = reference.kneighbors(queries.astype(np.float64))
    np.testing.assert_array_equal(index, expected_index)
    np.testing.assert_allclose(distance, expected_distance, rtol=1e-9)


def test_a_copy_is_found_at_distance_zero(tile: int):
    base = (np.random.default_rng(0).normal(size=(60, 9)) + 1000).astype(np.float32)
    index, distance = nearest_neighbours(base[::-1][:50], base)
    np.testing.assert_array_equal(index[:, 0], np.arange(60)[::-1][:50])
    np.testing.assert_array_equal(distance, 0)


def test_of_equal_distances_the_first_is_nearest(tile: int):
    index, distance = nearest_neighbours(np.zeros((3, 2)), np.array([[3, 4], [0, 2], [2, 0], [0, 2]] * 20), 4)
    assert index.tolist() == [[1, 2, 3, 5]] * 3
    assert distance.tolist() == [[2, 2, 2, 2]] * 3


def test_no_query_has_no_neighbour():
    index, distance = nearest_neighbours(np.zeros((0, 2)), np.zeros((3, 2)))
    assert index.shape == distance.shape == (0, 1)


def to_train(points: np.ndarray, train: np.ndarray) -> list[float]:
    return [min(math.dist(point, other) for other in train) for point in points]


@pytest.mark.parametrize("spread", [0.8, 1.0, 1.5])
def test_memorisation_is_its_definition(spread: float):
    random = np.random.default_rng(1)
    train, held_out, generated = (random.normal(size=(n, 2)) for n in (80, 150, 120))
    generated[:7] = train[:7]
    found = memorisation(generated * spread, train, held_out)
    own, other = to_train(generated * spread, train), to_train(held_out, train)
    np.testing.assert_allclose(found.distance, own, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(found.held_out, other, rtol=1e-9)
    np.testing.assert_allclose(np.linalg.norm(generated * spread - train[found.nearest], axis=1), own, atol=1e-12)
    pairs = [1.0 if d < h else 0.5 if d == h else 0.0 for d in own for h in other]
    assert found.closer == pytest.approx(sum(pairs) / len(pairs))
    assert found.closer == pytest.approx(scipy.stats.mannwhitneyu(other, own).statistic / len(pairs))
    first, second = sorted(other)[:2]  # of 150, the closest 1% is one and a half
    assert found.copies == pytest.approx(sum((d <= first) + 0.5 * (first < d <= second) for d in own) / len(own))


def test_new_images_of_the_distribution_are_no_copies():
    random = np.random.default_rng(2)
    found = [memorisation(*(random.normal(size=(n, 3)) for n in (300, 200, 300))) for _ in range(30)]
    assert np.mean([each.closer for each in found]) == pytest.approx(0.5, abs=0.02)
    assert np.mean([each.copies for each in found]) == pytest.approx(0.01, abs=0.006)


def test_copies_are_found():
    random = np.random.default_rng(3)
    train, held_out, fresh = (random.normal(size=(n, 4)).astype(np.float32) for n in (200, 200, 300))
    everything = memorisation(train, train, held_out)
    assert (everything.closer, everything.copies) == (1, 1)
    some = memorisation(np.concatenate([train[:100], fresh]), train, held_out)
    assert 0.25 <= some.copies < 0.3
    assert some.closer > 0.58
    assert some.nearest[:100].tolist() == list(range(100))
    near = memorisation(train + np.float32(1e-3), train, held_out)
    assert near.copies > 0.95


def test_copies_that_the_data_hold_anyway_are_not_held_against_a_model():
    random = np.random.default_rng(4)
    train = random.normal(size=(100, 4))
    held_out = np.concatenate([train[:20], random.normal(size=(180, 4))])  # a tenth, as of pictures taken twice
    found = memorisation(held_out, train, held_out)
    assert found.closer == pytest.approx(0.5)
    assert found.copies == pytest.approx(0.01)
    assert memorisation(train, train, held_out).copies == pytest.approx(0.1)
    assert memorisation(train, train, held_out).closer == pytest.approx(0.95)


def test_too_few_for_memorisation_are_refused(refuses: Callable[..., str]):
    many, few, none = np.zeros((100, 2)), np.zeros((99, 2)), np.zeros((0, 2))
    refuses(lambda: memorisation(many, many, few), "99 held-out", "100")
    refuses(lambda: memorisation(none, many, many), "0 generated")
    refuses(lambda: memorisation(many, none, many), "0 training")
    assert memorisation(many, many, many).closer == 0.5
