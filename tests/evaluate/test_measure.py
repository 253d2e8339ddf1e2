"""The numbers of a set of made images, each against a computation of its own."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from scipy.linalg import sqrtm

from ditlab.data import Dataset, open_data
from ditlab.evaluate.features import FeatureNetwork, Features
from ditlab.evaluate.measure import Number, floor, measure, names
from ditlab.evaluate.metrics import kernel_distance
from ditlab.evaluate.neighbours import precision_recall
from ditlab.evaluate.real import Real, real_features


@pytest.fixture
def seen(real: Dataset, complete: FeatureNetwork) -> Real:
    found = real_features(real, complete)
    assert found is not None
    return found


def by_scipy(one: np.ndarray, other: np.ndarray) -> float:
    """The Frechet distance of two sets of features, by the root of the product of their covariances."""
    one, other = one.astype(np.float64), other.astype(np.float64)
    a, b = np.cov(one, rowvar=False), np.cov(other, rowvar=False)
    between = one.mean(axis=0) - other.mean(axis=0)
    return float(between @ between + np.trace(a + b - 2 * np.real(sqrtm(a @ b))))


def values(numbers: dict[str, Number]) -> dict[str, float]:
    return {name: number.value for name, number in numbers.items()}


def test_only_features_of_the_reference_weights_are_called_fid():
    assert list(names("FID").values()) == ["FID", "sFID", "KID", "Inception score"]
    assert list(names("FD-EffNetLite0@64").values()) == [
        "FD-EffNetLite0@64", "sFD-EffNetLite0@64", "KD-EffNetLite0@64", "score-EffNetLite0@64"
    ]  # fmt: skip
    assert "FID" not in " ".join(names("FD-Inception(6a7c0deb)").values())


def test_every_number_is_what_a_direct_computation_gives(seen: Real, complete: FeatureNetwork, digits: np.ndarray):
    made, all_real = complete.extract(digits[900:1300]), complete.extract(seen.images(np.arange(601)))
    numbers = measure(made, seen.whole, seen)
    other = "Projection@8"
    assert list(numbers) == [f"FD-{other}", f"sFD-{other}", f"score-{other}", f"KD-{other}", "precision", "recall"]
    found = values(numbers)
    assert found[f"FD-{other}"] == pytest.approx(by_scipy(made.pooled, all_real.pooled), rel=1e-4)
    assert made.spatial is not None
    assert all_real.spatial is not None
    assert found[f"sFD-{other}"] == pytest.approx(by_scipy(made.spatial, all_real.spatial), rel=1e-4)
    assert (found["precision"], found["recall"]) == precision_recall(seen.pooled, made.pooled)
    kernel = kernel_distance(seen.pooled, made.pooled)
    assert (found[f"KD-{other}"], numbers[f"KD-{other}"].spread) == kernel
    assert made.probabilities is not None
    p = made.probabilities.astype(np.float64)
    score = np.exp((p * np.log(p / p.mean(axis=0))).sum(axis=1).mean())
    assert found[f"score-{other}"] == pytest.approx(score, rel=1e-6)
    assert numbers[f"score-{other}"].spread is None  # 400 images are one part
    for name in ("precision", "recall"):
        spread = numbers[name].spread
        assert spread is not None
        hits = np.random.default_rng(0).random((2000, 400 if name == "precision" else 601)) < found[name]
        assert spread == pytest.approx(hits.mean(axis=1).std(), rel=0.1)


def test_the_spread_of_a_distance_is_that_of_other_samples(seen: Real, complete: FeatureNetwork, digits: np.ndarray):
    """Of samples that are not the real distribution; near the floor the bootstrap says up to half as much again."""
    random = np.random.default_rng(0)
    mirrored = complete.extract(digits[:, :, ::-1]).pooled
    found = [measure(Features(mirrored[random.choice(1797, 300)]), seen.whole)["FD-Projection@8"] for _ in range(100)]
    spreads = [number.spread for number in found if number.spread is not None]
    assert np.mean(spreads) == pytest.approx(np.std([number.value for number in found]), rel=0.25)


def test_identical_images_are_at_distance_zero(seen: Real, complete: FeatureNetwork):
    made = complete.extract(seen.images(np.arange(601)))
    found = values(measure(made, seen.whole, seen))
    scale = float(np.trace(seen.whole.covariance))
    assert found["FD-Projection@8"] < 1e-6 * scale
    assert found["sFD-Projection@8"] < 1e-6 * scale
    assert (
        abs(found["KD-Projection@8"])
        < 0.1 * values(measure(Features(made.pooled + 1), seen.whole, seen))["KD-Projection@8"]
    )
    assert (found["precision"], found["recall"]) == (1, 1)


def test_the_floor_is_what_one_half_of_the_real_images_gets_from_the_other(seen: Real):
    even, odd = seen.pooled[::2], seen.pooled[1::2]
    found = values(floor(seen))
    assert list(found) == ["FD-Projection@8", "sFD-Projection@8", "KD-Projection@8", "precision", "recall"]
    assert found["FD-Projection@8"] == pytest.approx(by_scipy(even, odd), rel=1e-6)
    assert (found["precision"], found["recall"]) == precision_recall(even, odd)
    assert found["KD-Projection@8"] == kernel_distance(even, odd)[0]


def test_samples_no_better_than_real_images_get_the_floor(seen: Real, complete: FeatureNetwork, digits: np.ndarray):
    """Digits that are not among the real ones: as many as a half, and about as far from it as the other half is."""
    known = {image.tobytes() for image in seen.images(np.arange(601))}
    others = np.stack([image for image in digits if image.tobytes() not in known])[:301]
    even = replace(seen.whole, mean=seen.halves[0].mean, covariance=seen.halves[0].covariance)
    reached = measure(complete.extract(others), even)["FD-Projection@8"].value
    assert reached == pytest.approx(floor(seen)["FD-Projection@8"].value, rel=0.5)
    worse = measure(complete.extract(255 - others), even)["FD-Projection@8"].value
    assert worse > 20 * reached


def test_too_few_samples_are_refused_with_the_number_that_is_needed(seen: Real, refuses: Callable):
    made = Features(seen.pooled[:12])
    refuses(lambda: measure(made, seen.whole, seen), "12 samples", "12 features", "at least 13")
    assert "FD-Projection@8" in measure(Features(seen.pooled[:13]), seen.whole, seen)


def test_without_real_images_enough_there_is_no_distance_but_the_rest(
    real: Dataset, projection: FeatureNetwork, digits: np.ndarray
):
    few = real_features(open_data(replace(real.config, limit=12)), projection)
    assert few is not None
    made = projection.extract(digits[:8])  # fewer than a covariance needs; nobody asks for one
    assert list(measure(made, few.whole, few)) == ["KD-Projection@8", "precision", "recall"]
    assert list(floor(few)) == ["KD-Projection@8", "precision", "recall"]
    one_more = real_features(open_data(replace(real.config, limit=13)), projection)
    assert one_more is not None
    assert "FD-Projection@8" in floor(one_more)


def test_statistics_alone_give_the_distances_alone(seen: Real, complete: FeatureNetwork, digits: np.ndarray):
    made = complete.extract(digits[:100])
    unsaid = replace(seen.whole, count=0)  # as in files of others
    found = measure(made, unsaid)
    assert list(found) == ["FD-Projection@8", "sFD-Projection@8", "score-Projection@8"]
    pooled_only = replace(unsaid, spatial_mean=None, spatial_covariance=None)
    assert list(measure(made, pooled_only)) == ["FD-Projection@8", "score-Projection@8"]


def test_neighbours_are_looked_for_among_images_from_all_over(seen: Real, monkeypatch: pytest.MonkeyPatch):
    """Samples of which the first half are no digits at all: of few of them half are precise."""
    # The package's own `measure` is the function.
    monkeypatch.setattr(sys.modules[measure.__module__], "NEIGHBOURS", 60)
    made = Features(np.concatenate([seen.pooled[::10] + 1e3, seen.pooled[::10]]))
    found = measure(made, seen.whole, seen)
    assert 0.3 < found["precision"].value <= 0.5
    assert found["precision"].spread == pytest.approx(
        (found["precision"].value * (1 - found["precision"].value) / 60) ** 0.5
    )


def test_numbers_are_written_with_as_many_digits_as_mean_something():
    assert str(Number(12.34567, 0.0456)) == "12.35 ± 0.046"
    assert str(Number(0.5)) == "0.5"
