"""The closest training images, against a search of all pairs."""

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
def test_the_closest_in_pixels(rows: int, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(neighbours, "TILE", rows)
    told = list[float]()
    known = TrainingImages(DIGITS, "pixels", told.append)
    images, _ = open_data(DIGITS).read(np.arange(300))
    flat = images.reshape(300, -1).astype(float)
    made = np.random.default_rng(0).integers(0, 256, (4, 8, 8, 1), np.uint8)
    found = known.closest(made, 5)
    distances, indices = NearestNeighbors(n_neighbors=5).fit(flat).kneighbors(made.reshape(4, -1).astype(float))
    np.testing.assert_allclose(found.distances, distances)
    np.testing.assert_array_equal(found.images, images[indices].transpose(0, 1, 3, 4, 2))
    beside = NearestNeighbors(n_neighbors=2).fit(flat).kneighbors(flat[indices[:, 0]])[0][:, 1]
    np.testing.assert_allclose(found.beside, beside)
    assert told


def test_a_copy_is_found_at_no_distance():
    known = TrainingImages(DIGITS, "pixels")
    image = open_data(DIGITS).read(np.array([17]))[0].transpose(0, 2, 3, 1)
    found = known.closest(image, 3)
    assert found.distances[0, 0] == 0
    np.testing.assert_array_equal(found.images[0, 0], image[0])


def test_features_find_copies_too():
    known = TrainingImages(DIGITS, "features")
    image = open_data(DIGITS).read(np.array([17]))[0].transpose(0, 2, 3, 1)
    found = known.closest(image, 3)
    assert found.distances[0, 0] < 1e-3 * found.distances[0, 1]
    np.testing.assert_array_equal(found.images[0, 0], image[0])


def test_of_many_images_some_are_drawn(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(nearest, "MOST", 120)
    known = TrainingImages(DIGITS, "pixels")
    assert (len(known.rows), known.total) == (120, 300)


def test_what_cannot_be_is_said(refuses: Callable, tmp_path: Path):
    refuses(lambda: TrainingImages(DIGITS, "smell"), "unknown space 'smell'", "pixels or features")
    refuses(lambda: TrainingImages(DataConfig(source="folder", path=str(tmp_path / "gone")), "pixels"), "gone")
    known = TrainingImages(DIGITS, "pixels")
    refuses(lambda: known.closest(np.zeros((1, 9, 8, 1), np.uint8), 2), "(9, 8, 1)", "(8, 8, 1)")
