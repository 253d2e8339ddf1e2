import math
from collections.abc import Callable

import numpy as np
import pytest
import scipy.linalg
import scipy.ndimage
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.datasets import load_digits
from torchmetrics.image.fid import FrechetInceptionDistance
from torchmetrics.image.kid import KernelInceptionDistance, poly_mmd

from ditlab.evaluate import metrics
from ditlab.evaluate.metrics import (
    RESAMPLES,
    discrepancies,
    frechet_distance,
    frechet_spread,
    inception_score,
    kernel_distance,
)

Gaussian = tuple[np.ndarray, np.ndarray]


class Identity(torch.nn.Module):
    """What torchmetrics takes for a feature network."""

    def __init__(self, width: int):
        super().__init__()
        self.num_features = width

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return features


def rows(count: int, width: int, seed: int, shift: float = 0.0) -> np.ndarray:
    random = np.random.default_rng(seed)
    return random.normal(size=(count, width)) @ random.normal(size=(width, width)) + shift


def gaussian(features: np.ndarray) -> Gaussian:
    return features.mean(axis=0), np.cov(features, rowvar=False).reshape(features.shape[1], -1)


def by_square_root(a: Gaussian, b: Gaussian) -> float:
    """The distance as the paper writes it, with scipy's square root of the product."""
    root = scipy.linalg.sqrtm(a[1] @ b[1])
    return float(((a[0] - b[0]) ** 2).sum() + np.trace(a[1] + b[1] - 2 * np.real(root)))


@pytest.mark.parametrize(("width", "shift"), [(2, 0.0), (8, 0.3), (40, 0.0), (64, 2.0)])
def test_frechet_distance_is_torchmetrics_and_scipys(width: int, shift: float):
    real, made = rows(500, width, 0), rows(400, width, 1, shift)
    theirs = FrechetInceptionDistance(feature=Identity(width))
    theirs.update(torch.from_numpy(real), real=True)
    theirs.update(torch.from_numpy(made), real=False)
    ours = frechet_distance(*gaussian(real), *gaussian(made))
    assert ours == pytest.approx(theirs.compute().item(), rel=1e-6)
    assert ours == pytest.approx(by_square_root(gaussian(real), gaussian(made)), rel=1e-6)


@pytest.mark.parametrize(("samples", "others"), [(20, 30), (20, 200), (200, 20), (3, 3), (60, 61)])
def test_singular_covariances_lose_no_digits(samples: int, others: int):
    a, b = rows(samples, 50, 0), rows(others, 50, 1, 0.5)
    # With X and Y the centred samples the trace is the sum of the singular values of X Y', where no covariance appears.
    x, y = ((points - points.mean(axis=0)) / math.sqrt(len(points) - 1) for points in (a, b))
    direct = ((a.mean(0) - b.mean(0)) ** 2).sum() + (x**2).sum() + (y**2).sum() - 2 * np.linalg.norm(x @ y.T, "nuc")
    assert frechet_distance(*gaussian(a), *gaussian(b)) == pytest.approx(direct, rel=1e-10)


@given(st.lists(st.tuples(*[st.floats(0, 1e4)] * 2, st.floats(-100, 100)), min_size=1, max_size=6), st.integers(0, 99))
def test_independent_features_have_the_distance_of_each_added_up(features: list[tuple[float, ...]], seed: int):
    a, b, shift = np.array(features).T
    turn = np.linalg.qr(np.random.default_rng(seed).normal(size=(len(a), len(a))))[0]
    exact = (shift**2 + (np.sqrt(a) - np.sqrt(b)) ** 2).sum()
    ours = frechet_distance(np.zeros(len(a)), turn @ np.diag(a) @ turn.T, turn @ shift, turn @ np.diag(b) @ turn.T)
    # The rounding of the covariances themselves, 1e-16 of their largest value, moves a root of zero by 1e-8.
    assert ours == pytest.approx(exact, rel=1e-9, abs=1e-6 * math.sqrt(a.max() * b.max()) + 1e-9)


GAUSSIANS = st.builds(
    lambda width, samples, seed: (width, samples, seed), st.integers(1, 7), st.integers(2, 20), st.integers(0, 999)
)


@given(GAUSSIANS)
def test_a_set_has_no_distance_to_itself(drawn: tuple[int, int, int]):
    width, samples, seed = drawn
    mean, covariance = gaussian(rows(samples, width, seed))
    assert 0 <= frechet_distance(mean, covariance, mean, covariance) <= 1e-12 * np.trace(covariance)


@given(GAUSSIANS, st.integers(0, 999), st.floats(0.01, 100))
def test_the_distance_knows_no_order_rotation_or_origin_and_squares_the_unit(
    drawn: tuple[int, int, int], seed: int, unit: float
):
    width, samples, first = drawn
    random = np.random.default_rng(seed)
    turn = np.linalg.qr(random.normal(size=(width, width)))[0]
    x, y = rows(samples, width, first), rows(30, width, seed + 1000)
    distance = frechet_distance(*gaussian(x), *gaussian(y))
    origin = random.normal(size=width) * 3
    moved = [gaussian((points + origin) @ turn * unit) for points in (x, y)]
    scale = np.trace(gaussian(x)[1]) + np.trace(gaussian(y)[1])
    assert frechet_distance(*gaussian(y), *gaussian(x)) == pytest.approx(distance, rel=1e-9, abs=1e-9 * scale)
    assert frechet_distance(*moved[0], *moved[1]) / unit**2 == pytest.approx(distance, rel=1e-7, abs=1e-7 * scale)


def test_sets_without_any_spread_are_as_far_apart_as_their_means():
    nothing = np.zeros((4, 4))
    assert frechet_distance(np.zeros(4), nothing, np.ones(4), nothing) == 4
    assert frechet_distance(np.zeros(4), nothing, np.ones(4), np.eye(4)) == 8


def harm_noise(images: np.ndarray, labels: np.ndarray, level: float) -> np.ndarray:
    return images + np.random.default_rng(1).normal(size=images.shape) * level * 2


def harm_blur(images: np.ndarray, labels: np.ndarray, level: float) -> np.ndarray:
    return scipy.ndimage.gaussian_filter(images, (0, level / 2, level / 2))


def harm_classes(images: np.ndarray, labels: np.ndarray, level: float) -> np.ndarray:
    return images[labels < 10 - 2 * level]


@pytest.mark.parametrize("harm", [harm_noise, harm_blur, harm_classes])
def test_the_distance_rises_steadily_with_harm(harm: Callable[..., np.ndarray]):
    images, labels = map(np.asarray, load_digits(return_X_y=True))
    real, other = images[::2], images[1::2]
    distances = []
    for level in range(5):
        made = harm(other.reshape(-1, 8, 8), labels[1::2], level).reshape(-1, 64) if level else other
        distances.append(frechet_distance(*gaussian(real), *gaussian(made)))
    assert (np.diff(distances) > 0).all(), distances
    assert distances[-1] > 3 * distances[0]


def drawn(seed: int) -> np.ndarray:
    """Samples of a known distribution, unlike the reference N(0, 1) in mean and spread."""
    return np.random.default_rng(seed).normal(0.4, 1.5, (400, 5)).astype(np.float32)


def test_the_spread_of_resamples_is_that_of_independent_sets():
    reference = np.zeros(5), np.eye(5)
    independent = np.std([frechet_distance(*reference, *gaussian(drawn(seed))) for seed in range(300)])
    told = np.mean([frechet_spread(drawn(seed), *reference, seed=seed) for seed in range(1000, 1030)])
    assert 0.8 < told / independent < 1.25


def test_weights_are_copies(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(metrics, "BLOCK", 64)
    made, reference, random = drawn(3), gaussian(rows(80, 5, 1)), np.random.default_rng(7)
    distances = []
    for _ in range(RESAMPLES):
        copies = made.repeat(random.multinomial(len(made), np.full(len(made), 1 / len(made))), axis=0)
        distances.append(by_square_root(gaussian(copies.astype(np.float64)), reference))
    assert frechet_spread(made, *reference, seed=7) == pytest.approx(np.std(distances, ddof=1), rel=1e-6)


def test_a_spread_is_the_same_every_time_and_another_for_another_seed():
    spread = frechet_spread(drawn(0), np.zeros(5), np.eye(5))
    assert spread == frechet_spread(drawn(0), np.zeros(5), np.eye(5), seed=0) > 0
    assert spread != frechet_spread(drawn(0), np.zeros(5), np.eye(5), seed=1)


def test_a_spread_of_fewer_samples_than_features_is_finite():
    assert 0 < frechet_spread(rows(20, 50, 0), *gaussian(rows(90, 50, 1))) < np.inf


def discrepancy(x: np.ndarray, y: np.ndarray) -> float:
    (value,) = discrepancies(x, y, np.ones((1, len(x))), np.ones((1, len(y))))
    return value


@pytest.mark.parametrize(("count", "width", "shift"), [(2, 3, 0.0), (50, 8, 0.2), (200, 64, 0.0), (300, 5, 3.0)])
def test_the_discrepancy_is_torchmetrics(count: int, width: int, shift: float):
    x, y = rows(count, width, 0), rows(count, width, 1, shift)
    theirs = poly_mmd(torch.from_numpy(x), torch.from_numpy(y)).item()
    assert discrepancy(x, y) == pytest.approx(theirs, rel=1e-9)
    x, y = x.astype(np.float32), y.astype(np.float32)
    theirs = poly_mmd(torch.from_numpy(x).double(), torch.from_numpy(y).double()).item()
    assert discrepancy(x, y) == pytest.approx(theirs, rel=1e-9)


def test_the_kernel_distance_is_that_of_torchmetrics():
    real, made = rows(400, 6, 0), rows(500, 6, 1, 0.2)
    with pytest.warns(UserWarning, match="buffer"):  # it says that it keeps the features
        theirs = KernelInceptionDistance(feature=Identity(6), subsets=100, subset_size=200)
    theirs.update(torch.from_numpy(real), real=True)
    theirs.update(torch.from_numpy(made), real=False)
    torch.manual_seed(0)
    mean, spread = (value.item() for value in theirs.compute())
    value, std = kernel_distance(real, made)
    assert abs(value - mean) < 4 * spread / math.sqrt(50)  # two means of a hundred
    assert 0.7 < std / spread < 1.4


def test_sets_too_large_for_all_pairs_give_the_same_distance(monkeypatch: pytest.MonkeyPatch):
    real, made = rows(90, 5, 0), rows(70, 5, 1, 0.3)
    expected = kernel_distance(real, made)
    monkeypatch.setattr(metrics, "ALL_PAIRS", 159)
    assert kernel_distance(real, made) == pytest.approx(expected, rel=1e-9)


def test_real_against_real_has_a_kernel_distance_of_zero_on_average():
    random = np.random.default_rng(0)
    values = [kernel_distance(random.normal(size=(60, 4)), random.normal(size=(60, 4)))[0] for _ in range(40)]
    assert abs(np.mean(values)) < 3 * np.std(values) / math.sqrt(40)  # unbiased: as often below zero as above
    assert min(values) < 0 < max(values)


@pytest.mark.parametrize(("real", "made", "size"), [(9, 30, 4), (30, 7, 3), (90, 80, 20)])
def test_subsets_are_never_the_whole_set(monkeypatch: pytest.MonkeyPatch, real: int, made: int, size: int):
    sizes = set()

    def seen(x: np.ndarray, y: np.ndarray, *chosen: np.ndarray) -> np.ndarray:
        sizes.update(row.sum() for rows in chosen for row in rows)
        return discrepancies(x, y, *chosen)

    monkeypatch.setattr(metrics, "SUBSET", 20)
    monkeypatch.setattr(metrics, "discrepancies", seen)
    value, std = kernel_distance(rows(real, 3, 0), rows(made, 3, 1))
    assert sizes == {size}
    assert std > 0
    assert (value, std) == kernel_distance(rows(real, 3, 0), rows(made, 3, 1), seed=0)
    assert (value, std) != kernel_distance(rows(real, 3, 0), rows(made, 3, 1), seed=1)


def looped_score(probabilities: np.ndarray) -> float:
    count, classes = probabilities.shape
    average = [math.fsum(probabilities[:, k]) / count for k in range(classes)]
    divergences = [
        math.fsum(p * (math.log(p) - math.log(average[k])) for k, p in enumerate(row) if p > 0) for row in probabilities
    ]
    return math.exp(math.fsum(divergences) / count)


def confident(count: int, classes: int, seed: int) -> np.ndarray:
    logits = np.random.default_rng(seed).normal(size=(count, classes)) * 3
    return np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)


def test_the_inception_score_is_its_definition():
    probabilities = confident(103, 7, 0)
    probabilities[::5] = np.eye(7)[2]  # certain: logarithms of zero
    parts = [slice(0, 35), slice(35, 70), slice(70, 103)]
    scores = [looped_score(probabilities[part]) for part in parts]
    assert inception_score(probabilities, size=35) == pytest.approx((np.mean(scores), np.std(scores)), rel=1e-9)
    assert inception_score(probabilities) == pytest.approx((looped_score(probabilities), 0), rel=1e-9)
    single = probabilities.astype(np.float32)
    assert inception_score(single)[0] == pytest.approx(inception_score(probabilities)[0], rel=1e-5)


def test_the_inception_score_goes_from_one_to_the_number_of_classes():
    assert inception_score(np.full((40, 8), 1 / 8)) == pytest.approx((1, 0))
    assert inception_score(np.eye(8)[np.arange(80) % 8]) == pytest.approx((8, 0))
    assert inception_score(np.eye(8)[np.zeros(80, int)]) == pytest.approx((1, 0))


@given(st.integers(10, 60), st.integers(2, 9), st.integers(0, 99))
def test_the_inception_score_keeps_its_bounds(count: int, classes: int, seed: int):
    mean, std = inception_score(confident(count, classes, seed))
    assert 1 - 1e-9 <= mean <= classes + 1e-9
    assert std >= 0


def test_too_few_samples_are_refused(refuses: Callable[..., str]):
    refuses(lambda: kernel_distance(np.zeros((3, 2)), np.zeros((9, 2))), "3 real", "9 generated", "at least 4")
    kernel_distance(rows(4, 2, 0), rows(4, 2, 1))
