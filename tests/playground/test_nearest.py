"""The nearest training images, against scikit-learn."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from sklearn.neighbors import NearestNeighbors

from ditlab.data import DataConfig, open_data
from ditlab.evaluate import neighbours
from ditlab.playground import nearest
from ditlab.playground.nearest import TrainingImages

DIGITS = DataConfig(source="digits", limit=300)


@pytest.mark.parametrize("rows", [50, 100_000])
def test_nearest_in_pixels(rows: int, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(neighbours, "TILE", rows)
    fractions = list[float]()
    known = TrainingImages(DIGITS, "pixels", fractions.append)
    images, _ = open_data(DIGITS).read(np.arange(300))
    flat = images.reshape(300, -1).astype(float)
    made = np.random.default_rng(0).integers(0, 256, (4, 8, 8, 1), np.uint8)
    found = known.search(made, 5)
    distances, indices = NearestNeighbors(n_neighbors=5).fit(flat).kneighbors(made.reshape(4, -1).astype(float))
    np.testing.assert_allclose(found.distances, distances)
    np.testing.assert_array_equal(found.images, images[indices].transpose(0, 1, 3, 4, 2))
    reference = NearestNeighbors(n_neighbors=2).fit(flat).kneighbors(flat[indices[:, 0]])[0][:, 1]
    np.testing.assert_allclose(found.reference, reference)
    assert fractions


def test_a_copy_has_distance_zero():
    known = TrainingImages(DIGITS, "pixels")
    image = open_data(DIGITS).read(np.array([17]))[0].transpose(0, 2, 3, 1)
    found = known.search(image, 3)
    assert found.distances[0, 0] == 0
    np.testing.assert_array_equal(found.images[0, 0], image[0])


def test_features_find_copies_too():
    known = TrainingImages(DIGITS, "features")
    image = open_data(DIGITS).read(np.array([17]))[0].transpose(0, 2, 3, 1)
    found = known.search(image, 3)
    assert found.distances[0, 0] < 1e-3 * found.distances[0, 1]
    np.testing.assert_array_equal(found.images[0, 0], image[0])


def test_a_large_training_set_is_sampled(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(nearest, "MAX_IMAGES", 120)
    known = TrainingImages(DIGITS, "pixels")
    assert (len(known.rows), known.total) == (120, 300)


def test_errors(refuses: Callable, tmp_path: Path):
    refuses(lambda: TrainingImages(DIGITS, "smell"), "unknown feature space 'smell'", "pixels, features")
    refuses(lambda: TrainingImages(DataConfig(source="folder", path=str(tmp_path / "gone")), "pixels"), "gone")
    known = TrainingImages(DIGITS, "pixels")
    refuses(lambda: known.search(np.zeros((1, 9, 8, 1), np.uint8), 2), "(9, 8, 1)", "(8, 8, 1)")
