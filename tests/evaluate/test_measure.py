"""The metrics of a set of generated images, each against an independent computation."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from scipy.linalg import sqrtm

from ditlab.data import Dataset, open_data
from ditlab.evaluate import neighbours
from ditlab.evaluate.features import FeatureNetwork, Features
from ditlab.evaluate.measure import Number, floor, measure, metric_names, no_frechet
from ditlab.evaluate.metrics import kernel_distance
from ditlab.evaluate.neighbours import precision_recall
from ditlab.evaluate.real import RealImages, real_features


@pytest.fixture
def features(real: Dataset, complete: FeatureNetwork) -> RealImages:
    found = real_features(real, complete)
    assert found is not None
    return found


def scipy_distance(one: np.ndarray, other: np.ndarray) -> float:
    """The Frechet distance of two sets of features, by the root of the product of their covariances."""
    one, other = one.astype(np.float64), other.astype(np.float64)
    a, b = np.cov(one, rowvar=False), np.cov(other, rowvar=False)
    difference = one.mean(axis=0) - other.mean(axis=0)
    return float(difference @ difference + np.trace(a + b - 2 * np.real(sqrtm(a @ b))))


def values(numbers: dict[str, Number]) -> dict[str, float]:
    return {name: number.value for name, number in numbers.items()}


def test_only_features_of_the_reference_weights_are_named_fid():
    assert list(metric_names("FID").values()) == ["FID", "sFID", "KID", "Inception score"]
    assert list(metric_names("FD-EffNetLite0@64").values()) == [
        "FD-EffNetLite0@64", "sFD-EffNetLite0@64", "KD-EffNetLite0@64", "score-EffNetLite0@64"
    ]  # fmt: skip
    assert "FID" not in " ".join(metric_names("FD-Inception(6a7c0deb)").values())


def test_every_metric_equals_a_direct_computation(features: RealImages, complete: FeatureNetwork, digits: np.ndarray):
    generated, all_real = complete.extract(digits[900:1300]), complete.extract(features.images(np.arange(601)))
    numbers = measure(generated, features.statistics, features)
    other = "Projection@8"
    assert list(numbers) == [f"FD-{other}", f"sFD-{other}", f"score-{other}", f"KD-{other}", "precision", "recall"]
    found = values(numbers)
    assert found[f"FD-{other}"] == pytest.approx(scipy_distance(generated.pooled, all_real.pooled), rel=1e-4)
    assert generated.spatial is not None
    assert all_real.spatial is not None
    assert found[f"sFD-{other}"] == pytest.approx(scipy_distance(generated.spatial, all_real.spatial), rel=1e-4)
    assert (found["precision"], found["recall"]) == precision_recall(features.pooled, generated.pooled)
    kernel = kernel_distance(features.pooled, generated.pooled)
    assert (found[f"KD-{other}"], numbers[f"KD-{other}"].spread) == kernel
    assert generated.probabilities is not None
    p = generated.probabilities.astype(np.float64)
    score = np.exp((p * np.log(p / p.mean(axis=0))).sum(axis=1).mean())
    assert found[f"score-{other}"] == pytest.approx(score, rel=1e-6)
    assert numbers[f"score-{other}"].spread is None  # 400 images are one part
    for name in ("precision", "recall"):
        spread = numbers[name].spread
        assert spread is not None
        hits = np.random.default_rng(0).random((2000, 400 if name == "precision" else 601)) < found[name]
        assert spread == pytest.approx(hits.mean(axis=1).std(), rel=0.1)


def test_the_spread_of_a_distance_is_that_over_other_samples(
    features: RealImages, complete: FeatureNetwork, digits: np.ndarray
):
    """Of samples that are not the real distribution; near the floor the bootstrap's is up to half too large."""
    random = np.random.default_rng(0)
    mirrored = complete.extract(digits[:, :, ::-1]).pooled
    found = [
        measure(Features(mirrored[random.choice(1797, 300)]), features.statistics)["FD-Projection@8"]
        for _ in range(100)
    ]
    spreads = [number.spread for number in found if number.spread is not None]
    assert np.mean(spreads) == pytest.approx(np.std([number.value for number in found]), rel=0.25)


def test_identical_images_are_at_distance_zero(features: RealImages, complete: FeatureNetwork):
    generated = complete.extract(features.images(np.arange(601)))
    found = values(measure(generated, features.statistics, features))
    scale = float(np.trace(features.statistics.covariance))
    assert found["FD-Projection@8"] < 1e-6 * scale
    assert found["sFD-Projection@8"] < 1e-6 * scale
    assert (
        abs(found["KD-Projection@8"])
        < 0.1 * values(measure(Features(generated.pooled + 1), features.statistics, features))["KD-Projection@8"]
    )
    assert (found["precision"], found["recall"]) == (1, 1)


def test_the_floor_is_the_distance_of_the_halves_of_the_real_images(features: RealImages):
    even, odd = features.pooled[::2], features.pooled[1::2]
    found = values(floor(features))
    assert list(found) == ["FD-Projection@8", "sFD-Projection@8", "KD-Projection@8", "precision", "recall"]
    assert found["FD-Projection@8"] == pytest.approx(scipy_distance(even, odd), rel=1e-6)
    assert (found["precision"], found["recall"]) == precision_recall(even, odd)
    assert found["KD-Projection@8"] == kernel_distance(even, odd)[0]


def test_samples_as_good_as_real_images_have_the_floor(
    features: RealImages, complete: FeatureNetwork, digits: np.ndarray
):
    """Digits that are not among the real ones: as many as a half, and about as far from it as the other half is."""
    known = {image.tobytes() for image in features.images(np.arange(601))}
    others = np.stack([image for image in digits if image.tobytes() not in known])[:301]
    even = replace(features.statistics, mean=features.halves[0].mean, covariance=features.halves[0].covariance)
    reached = measure(complete.extract(others), even)["FD-Projection@8"].value
    assert reached == pytest.approx(floor(features)["FD-Projection@8"].value, rel=0.5)
    worse = measure(complete.extract(255 - others), even)["FD-Projection@8"].value
    assert worse > 20 * reached


def test_too_few_samples_give_all_metrics_but_the_distance(features: RealImages, refuses: Callable):
    for count in (4, 12):
        few = Features(features.pooled[:count])
        assert list(measure(few, features.statistics, features)) == ["KD-Projection@8", "precision", "recall"]
    assert "FD-Projection@8" in measure(Features(features.pooled[:13]), features.statistics, features)
    reason = "12 samples are too few for the covariance of 12 features; at least 13 needed"
    assert no_frechet(12, features.statistics) == reason
    assert no_frechet(13, features.statistics) == ""
    assert (
        no_frechet(12, replace(features.statistics, count=0)) == reason
    )  # in files of others the real images count as enough
    refuses(lambda: measure(few, features.statistics), reason, "real images as the reference")
    three = Features(features.pooled[:3])
    refuses(lambda: measure(three, features.statistics, features), "3 samples", "at least 4")


def test_too_few_real_images_give_all_metrics_but_the_distance(
    real: Dataset, projection: FeatureNetwork, digits: np.ndarray
):
    few = real_features(open_data(replace(real.config, limit=12)), projection)
    assert few is not None
    generated = projection.extract(digits[:8])  # fewer than a covariance needs
    assert list(measure(generated, few.statistics, few)) == ["KD-Projection@8", "precision", "recall"]
    assert list(floor(few)) == ["KD-Projection@8", "precision", "recall"]
    halves = real_features(open_data(replace(real.config, limit=5)), projection)
    assert halves is not None
    assert list(measure(generated, halves.statistics, halves)) == ["KD-Projection@8", "precision", "recall"]
    assert floor(halves) == {}  # halves of 2 and 3
    one_more = real_features(open_data(replace(real.config, limit=13)), projection)
    assert one_more is not None
    assert "FD-Projection@8" in floor(one_more)


def test_statistics_without_images_give_distances_only(
    features: RealImages, complete: FeatureNetwork, digits: np.ndarray
):
    generated = complete.extract(digits[:100])
    no_count = replace(features.statistics, count=0)  # as in files of others
    found = measure(generated, no_count)
    assert list(found) == ["FD-Projection@8", "sFD-Projection@8", "score-Projection@8"]
    pooled_only = replace(no_count, spatial_mean=None, spatial_covariance=None)
    assert list(measure(generated, pooled_only)) == ["FD-Projection@8", "score-Projection@8"]


def direct_precision_recall(real: np.ndarray, generated: np.ndarray, k: int = 3) -> tuple[float, float]:
    """As in ADM's suite, with the whole matrices of distances."""

    def distances(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        return np.linalg.norm(a.astype(np.float64)[:, None] - b.astype(np.float64), axis=2)

    radii = [np.sort(distances(points, points), axis=1)[:, k] * (1 + 1e-12) for points in (real, generated)]
    between = distances(real, generated)
    precision = (between <= radii[0][:, None]).any(axis=0).mean()
    return float(precision), float((between <= radii[1]).any(axis=1).mean())


def test_precision_and_recall_use_all_samples_and_evenly_chosen_real_images(
    features: RealImages, complete: FeatureNetwork, digits: np.ndarray, monkeypatch: pytest.MonkeyPatch
):
    # The package's own `measure` is the function.
    monkeypatch.setattr(sys.modules[measure.__module__], "REFERENCES", 100)
    monkeypatch.setattr(neighbours, "TILE", 64)
    generated = complete.extract(np.clip(digits[::3].astype(int) + 20, 0, 255).astype(np.uint8))
    assert len(generated) == 599
    found = measure(generated, features.statistics, features)
    real = features.pooled[np.arange(100) * 601 // 100]
    expected = direct_precision_recall(real, generated.pooled)
    assert (found["precision"].value, found["recall"].value) == pytest.approx(expected, abs=1e-12)
    assert 0 < expected[0] < 1
    assert 0 < expected[1] < 1
    for name, count in (("precision", 599), ("recall", 100)):
        value = found[name].value
        assert found[name].spread == pytest.approx((value * (1 - value) / count) ** 0.5)


def test_numbers_are_written_with_their_significant_digits():
    assert str(Number(12.34567, 0.0456)) == "12.35 ± 0.046"
    assert str(Number(0.5)) == "0.5"
