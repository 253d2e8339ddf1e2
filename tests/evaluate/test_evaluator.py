"""The metrics when images get worse, and whether copies of training images are found."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from ditlab.data import DataConfig, Dataset, open_data
from ditlab.evaluate import evaluator as module
from ditlab.evaluate.evaluator import Evaluator, extract_features, small_pixels
from ditlab.evaluate.features import FeatureNetwork
from ditlab.evaluate.metrics import frechet_distance
from ditlab.evaluate.neighbours import precision_recall
from ditlab.evaluate.networks import feature_network
from ditlab.evaluate.real import RealImages, extract, real_features
from ditlab.evaluate.statistics import Statistics

CLOSER, COPIES = "closer than held out, ", "copies, "


@pytest.fixture(scope="module")
def efficientnet() -> FeatureNetwork:
    return feature_network("efficientnet-lite0", (8, 8))


@pytest.fixture(scope="module")
def judge(efficientnet: FeatureNetwork) -> Evaluator:
    """All digits in EfficientNet's features, from the cache that all tests share."""
    found = Evaluator.of(open_data(DataConfig()), efficientnet)
    assert found is not None
    return found


def real_images(judge: Evaluator) -> RealImages:
    assert judge.real is not None
    return judge.real


def distance(generated: np.ndarray, judge: Evaluator) -> float:
    """Of features (N, 1280), also of few; compared ones are as many."""
    statistics = Statistics(generated.shape[1])
    statistics.update(generated)
    return frechet_distance(statistics.mean, statistics.covariance, judge.reference.mean, judge.reference.covariance)


def noised(images: np.ndarray, level: float) -> np.ndarray:
    noise = np.random.default_rng(0).normal(size=images.shape)
    return np.clip(images + level * noise, 0, 255).round().astype(np.uint8)


def blurred(images: np.ndarray, width: float) -> np.ndarray:
    return gaussian_filter(images.astype(float), (0, width, width, 0)).round().astype(np.uint8)


@pytest.mark.parametrize(("harm", "levels"), [(noised, (8, 24, 72)), (blurred, (0.4, 0.6, 1.2))])
def test_the_distance_rises_with_noise_and_with_blur(
    harm: Callable, levels: tuple[float, ...], judge: Evaluator, digits: np.ndarray
):
    few = digits[:256]
    found = [distance(real_images(judge).pooled[:256], judge)]
    found += [distance(extract(judge.network, harm(few, level)).pooled, judge) for level in levels]
    assert all(np.diff(found) > 0.1 * found[0])
    assert found[3] > 3 * found[0]


def test_the_distance_rises_and_recall_falls_with_every_class_that_is_dropped(judge: Evaluator):
    labels, random = open_data(DataConfig()).labels, np.random.default_rng(0)
    distances, recalls = [], []
    for classes in (10, 8, 6, 4):  # as many images of each choice
        rows = random.choice(np.flatnonzero(labels < classes), 600, replace=False)
        distances.append(distance(real_images(judge).pooled[rows], judge))
        recalls.append(precision_recall(real_images(judge).pooled, real_images(judge).pooled[rows])[1])
    assert all(np.diff(distances) > 0.5 * distances[0])
    assert all(np.diff(recalls) < -0.05)


def test_the_images_themselves_are_at_distance_zero_and_halves_at_the_floor(judge: Evaluator):
    floor, name = judge.floor(), "FD-EffNetLite0@64"
    assert list(floor) == [name, "KD-EffNetLite0@64", "precision", "recall"]
    assert distance(real_images(judge).pooled, judge) < 1e-6 * floor[name].value
    even, odd = real_images(judge).halves
    assert (even.count, odd.count) == (899, 898)
    assert floor[name].value == frechet_distance(even.mean, even.covariance, odd.mean, odd.covariance)
    half = distance(real_images(judge).pooled[::2], judge)  # a half against all, which it is part of
    assert 0.1 * floor[name].value < half < 0.5 * floor[name].value
    assert floor["precision"].value < 1


def test_features_are_in_order_and_the_first_images_are_stored(projection: FeatureNetwork, digits: np.ndarray):
    progress: list[int] = []
    batches = [digits[start : start + 300] for start in range(0, 1700, 300)]
    extracted = extract_features(projection, iter(batches), progress=progress.append)
    assert extracted is not None
    assert progress == [300, 600, 900, 1200, 1500, 1797]
    np.testing.assert_allclose(extracted.features.pooled, projection.extract(digits).pooled, rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(extracted.images, digits[:1000])


def test_no_images_are_refused(projection: FeatureNetwork, refuses: Callable):
    refuses(lambda: extract_features(projection, []), "no images")


@pytest.fixture
def split(digits: np.ndarray, draw: Callable, tmp_path: Path, cache: Path) -> Dataset:
    """A folder of 800 digits to train on and 400 held out; 597 more are in neither."""
    draw(digits[:800], tmp_path / "digits" / "train")
    draw(digits[800:1200], tmp_path / "digits" / "test")
    return open_data(DataConfig(source="folder", path=str(tmp_path / "digits")))


def neighbours(dataset: Dataset, network: FeatureNetwork, images: np.ndarray):
    found, extracted = Evaluator.of(dataset, network), extract_features(network, [images])
    assert found is not None
    assert extracted is not None
    return found.neighbours(extracted)


def test_copies_of_training_images_are_found(split: Dataset, projection: FeatureNetwork, digits: np.ndarray):
    copies = digits[100:700:2].copy()
    copies[:, 0, 0] += 1  # not to the bit
    found = neighbours(split, projection, copies)
    assert found is not None
    for space in ("features", "pixels"):
        assert found.numbers[CLOSER + space].value > 0.99
        assert found.numbers[COPIES + space].value > 0.99
    assert list(found.expected) == list(found.numbers)
    np.testing.assert_array_equal(found.generated, copies[:32])
    for nearest in (found.in_features, found.in_pixels):
        np.testing.assert_array_equal(nearest, digits[100:164:2])


def test_new_images_of_the_same_distribution_are_not_taken_for_copies(
    split: Dataset, projection: FeatureNetwork, digits: np.ndarray
):
    found = neighbours(split, projection, digits[1200:])
    assert found is not None
    for space in ("features", "pixels"):
        assert found.numbers[CLOSER + space].value == pytest.approx(found.expected[CLOSER + space].value, abs=0.06)
        assert found.numbers[COPIES + space].value == pytest.approx(found.expected[COPIES + space].value, abs=0.02)


def test_the_expected_values_have_the_spread_of_chance(split: Dataset, projection: FeatureNetwork, digits: np.ndarray):
    """Generated and held-out images with equally distributed distances to the training images, drawn repeatedly."""
    found = neighbours(split, projection, digits[1200:])
    assert found is not None
    random, closer, copies = np.random.default_rng(0), [], []
    for _ in range(400):
        generated, held_out = random.random(597), random.random(400)
        closer.append((generated[:, None] < held_out).mean())
        copies.append((generated < np.sort(held_out)[4]).mean())
    for space in ("features", "pixels"):
        assert found.expected[CLOSER + space].spread == pytest.approx(np.std(closer), rel=0.15)
        assert found.expected[COPIES + space].spread == pytest.approx(np.std(copies), rel=0.25)


def test_half_copies_are_half_way(split: Dataset, projection: FeatureNetwork, digits: np.ndarray):
    found = neighbours(split, projection, np.concatenate([digits[:300], digits[1200:1500]]))
    assert found is not None
    for space in ("features", "pixels"):
        assert found.numbers[CLOSER + space].value == pytest.approx(0.75, abs=0.05)
        assert found.numbers[COPIES + space].value == pytest.approx(0.5, abs=0.05)


def test_nearest_images_are_the_nearest_by_a_direct_search(
    split: Dataset, projection: FeatureNetwork, digits: np.ndarray
):
    found = neighbours(split, projection, digits[1200:1220])
    assert found is not None
    train, queries = (part.reshape(len(part), -1).astype(float) for part in (digits[:800], digits[1200:1220]))
    rows = [int(((train - query) ** 2).sum(axis=1).argmin()) for query in queries]
    np.testing.assert_array_equal(found.in_pixels, digits[rows])
    train, queries = (projection.extract(part).pooled for part in (digits[:800], digits[1200:1220]))
    rows = [int(((train - query) ** 2).sum(axis=1).argmin()) for query in queries]
    np.testing.assert_array_equal(found.in_features, digits[rows])


def test_without_held_out_images_only_the_nearest_are_returned(
    real: Dataset, projection: FeatureNetwork, digits: np.ndarray
):
    """Digits have no test split."""
    found = neighbours(real, projection, digits[:40])
    assert found is not None
    assert (found.numbers, found.expected) == ({}, {})
    assert found.in_features.shape == found.in_pixels.shape == found.generated.shape == (32, 8, 8, 1)


def test_held_out_images_that_are_few_or_of_another_size_are_not_used(
    digits: np.ndarray, draw: Callable, projection: FeatureNetwork, tmp_path: Path, cache: Path
):
    for name, held_out in (("few", digits[200:299]), ("large", digits[200:400].repeat(2, axis=1))):
        draw(digits[:200], tmp_path / name / "train")
        draw(held_out, tmp_path / name / "test")
        dataset = open_data(DataConfig(source="folder", path=str(tmp_path / name)))
        found = Evaluator.of(dataset, projection)
        assert found is not None
        assert found.held_out is None
    for name in ("0000.png", "0001.png"):  # 100, of which 98 can be read
        draw(digits[200:300], tmp_path / "few" / "test")
        (tmp_path / "few" / "test" / name).write_bytes(b"nothing")
    draw(digits[200:300], tmp_path / "enough" / "test")
    draw(digits[:200], tmp_path / "enough" / "train")
    for name, expected in (("few", False), ("enough", True)):
        found = Evaluator.of(open_data(DataConfig(source="folder", path=str(tmp_path / name))), projection)
        assert found is not None
        assert (found.held_out is not None) == expected


def test_memorisation_is_measured_against_training_images_only(
    split: Dataset, projection: FeatureNetwork, digits: np.ndarray, tmp_path: Path
):
    held_out = open_data(DataConfig(source="folder", path=str(tmp_path / "digits"), split="test"))
    assert neighbours(held_out, projection, digits[:40]) is None
    found, extracted = Evaluator.of(split, projection), extract_features(projection, [digits[:40]])
    assert found is not None
    assert extracted is not None
    alone = Evaluator(projection, found.reference)  # statistics of a file
    assert alone.neighbours(extracted) is None
    assert alone.floor() == {}
    assert list(alone.measure(extracted)) == ["FD-Projection@8"]


def test_grey_and_rgb_images_are_compared_as_rgb(split: Dataset, projection: FeatureNetwork, digits: np.ndarray):
    rgb = digits[50:90].repeat(3, axis=3)
    opaque = np.concatenate([rgb, np.full_like(digits[50:90], 255)], axis=3)
    for images in (rgb, opaque):
        found = neighbours(split, projection, images)
        assert found is not None
        assert found.numbers["copies, pixels"].value == 1
        for part in (found.generated, found.in_features, found.in_pixels):
            np.testing.assert_array_equal(part, rgb[:32])


def test_only_the_first_generated_and_some_held_out_images_are_searched(
    split: Dataset, projection, digits: np.ndarray, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(module, "SEARCHED", 150)
    found = Evaluator.of(split, projection)
    assert found is not None
    assert found.held_out is not None
    assert (projection.shown, len(found.held_out.indices)) == (950, 150)
    extracted = extract_features(projection, [digits[:160], digits[1200:]])
    assert extracted is not None
    assert len(extracted.images) == 150
    nearest = found.neighbours(extracted)
    assert nearest is not None
    assert nearest.numbers["copies, pixels"].value == 1


def test_images_and_statistics_of_a_file_are_the_reference(
    projection: FeatureNetwork, digits: np.ndarray, tmp_path: Path, cache: Path, refuses: Callable
):
    """As of ADM's reference batches: statistics of all real images, and some of these images."""
    whole = real_features(open_data(DataConfig()), projection)
    extracted = extract_features(projection, [digits[::-2]])
    assert whole is not None
    assert extracted is not None
    mu, sigma = whole.statistics.mean, whole.statistics.covariance
    projection.distance = "FID"  # of files without a name
    np.savez(tmp_path / "both.npz", arr_0=digits[:500], mu=mu, sigma=sigma)
    np.savez(tmp_path / "images.npz", digits[:500])
    np.savez(tmp_path / "statistics.npz", mu=mu, sigma=sigma)
    numbers = {}
    for name in ("both", "images", "statistics"):
        found = Evaluator.from_file(tmp_path / f"{name}.npz", projection, (8, 8))
        assert found is not None
        assert found.neighbours(extracted) is None  # they are not known to be training images
        numbers[name] = found.measure(extracted)
        assert list(found.floor()) == ([] if name == "statistics" else ["FID", "KID", "precision", "recall"])
    assert list(numbers["both"]) == list(numbers["images"]) == ["FID", "KID", "precision", "recall"]
    assert numbers["both"]["FID"] == numbers["statistics"]["FID"]
    assert list(numbers["statistics"]) == ["FID"]
    assert numbers["images"]["FID"].value > numbers["both"]["FID"].value  # of fewer images
    expected = precision_recall(projection.extract(digits[:500]).pooled, extracted.features.pooled)
    for name in ("both", "images"):
        found = tuple(numbers[name][metric].value for metric in ("precision", "recall"))
        assert found == pytest.approx(expected, abs=1e-12)
    for name in ("both", "images"):
        refuses(lambda name=name: Evaluator.from_file(tmp_path / f"{name}.npz", projection, (9, 8)), "8x8", "9x8")


@pytest.mark.parametrize("shape", [(8, 8, 1), (32, 32, 3), (33, 64, 3), (63, 8, 1), (300, 40, 3)], ids=str)
def test_pixels_are_averaged_over_squares(shape: tuple[int, int, int]):
    images = np.random.default_rng(0).integers(0, 256, (3, *shape), np.uint8)
    found = small_pixels(images)
    assert found.dtype == np.uint8
    rows, columns = (next(k for k in range(1, 99) if side <= 32 * k) for side in shape[:2])
    height, width = shape[0] // rows, shape[1] // columns
    assert found.shape == (3, height * width * shape[2])
    for row in range(height):
        for column in range(width):
            block = images[1, row * rows : (row + 1) * rows, column * columns : (column + 1) * columns]
            mean = found[1].reshape(height, width, shape[2])[row, column]
            np.testing.assert_allclose(mean, block.mean(axis=(0, 1)), atol=0.5)
