"""open_data on digits, the fields of DataConfig, Images and the fingerprint."""

from __future__ import annotations

import os
import sys

import numpy as np
import pytest
from sklearn.datasets import load_digits

from ditlab.data import DataConfig, Images, open_data


def test_digits() -> None:
    data = open_data(DataConfig())
    assert data.describe() == "digits: 1,797 images of 1x8x8, 10 classes"
    images = data.load()
    levels, labels = load_digits(return_X_y=True)
    assert np.array_equal(images.pixels.reshape(-1, 64), np.round(np.asarray(levels) * 255 / 16))
    assert np.array_equal(images.labels, labels)
    assert images.names == tuple("0123456789")
    assert images.skipped == ()
    assert images.pixels.max() == 255


def test_size_and_channels() -> None:
    assert open_data(DataConfig(size=(16,))).load().shape == (1, 16, 16)
    assert open_data(DataConfig(size=(8, 12), fit="pad", channels=3, limit=5)).load().shape == (3, 8, 12)
    native, sized = open_data(DataConfig()).load(), open_data(DataConfig(size=(8, 8))).load()
    assert np.array_equal(native.pixels, sized.pixels)


def test_limit_mixes_classes_and_grows() -> None:
    few, more = open_data(DataConfig(limit=40)), open_data(DataConfig(limit=100))
    assert len(few) == 40
    assert len(set(few.labels.tolist())) == 10
    assert np.array_equal(few.load().pixels, more.load().pixels[:40])
    assert np.array_equal(few.labels, more.labels[:40])
    everything = open_data(DataConfig(limit=10**6))
    assert everything.fingerprint == open_data(DataConfig()).fingerprint


def test_fingerprint() -> None:
    configs = [
        DataConfig(),
        DataConfig(size=(16,)),
        DataConfig(size=(16, 8)),
        DataConfig(size=(16,), fit="pad"),
        DataConfig(channels=3),
        DataConfig(limit=10),
        DataConfig(limit=11),
    ]
    prints = [open_data(config).fingerprint for config in configs]
    assert len(set(prints)) == len(configs)
    assert prints == [open_data(config).fingerprint for config in configs]
    assert open_data(DataConfig(flip=True)).fingerprint == prints[0]
    assert open_data(DataConfig(size=(16, 16))).fingerprint == prints[1]
    assert int(prints[0], 16) > 0


def test_fingerprint_of_files_follows_content_not_place(tmp_path, write, photos) -> None:
    def fingerprint(name: str, files: dict[str, bytes]) -> str:
        return open_data(DataConfig("folder", str(write(tmp_path / name, files)))).fingerprint

    first = fingerprint("one", photos)
    assert fingerprint("two", photos) == first
    assert fingerprint("three", {**photos, "cat/z.png": photos["cat/a.png"]}) != first
    assert fingerprint("four", {**photos, "cat/a.png": photos["cat/a.png"] + b" "}) != first
    assert fingerprint("five", {name.replace("cat", "cow"): content for name, content in photos.items()}) != first


def test_progress_and_reading(tmp_path) -> None:
    data = open_data(DataConfig())
    seen: list[tuple[int, int]] = []
    images = data.load(lambda done, total: seen.append((done, total)))
    assert seen == [(1024, 1797), (1797, 1797)]
    pixels, kept = data.read([5, 5, 0])
    assert kept.tolist() == [5, 5, 0]
    assert np.array_equal(pixels, images.pixels[[5, 5, 0]])
    assert data.read([])[0].shape == (0, 1, 8, 8)
    for wrong in (-1, 1797):
        with pytest.raises(IndexError, match="1796"):
            data.read([wrong])


def test_images_read_is_a_mirrored_copy() -> None:
    pixels = np.arange(2 * 1 * 2 * 3, dtype=np.uint8).reshape(2, 1, 2, 3)
    images = Images(pixels, np.array([0, 1]), ("a", "b"), "f", ())
    assert (len(images), images.shape) == (2, (1, 2, 3))
    read = images.read(np.array([1, 0, 1]), np.array([True, False, False]))
    assert read[0, 0].tolist() == [[8, 7, 6], [11, 10, 9]]
    assert np.array_equal(read[1:], pixels[[0, 1]])
    read[:] = 0
    assert pixels.max() == 11
    assert np.array_equal(images.read(np.array([1])), pixels[1:])


@pytest.mark.parametrize(
    ("config", "words"),
    [
        (DataConfig("digts"), ["'digts'", "did you mean 'digits'"]),
        (DataConfig(split="tset"), ["'tset'", "did you mean 'test'"]),
        (DataConfig(split="test"), ["digits has no test split", "1,797"]),
        (DataConfig(fit="stretch"), ["'stretch'", "crop, pad"]),  # pyright: ignore[reportArgumentType]
        (DataConfig(channels=2), ["channels 2", "3 (RGB)"]),
        (DataConfig(limit=-1), ["limit -1"]),
        (DataConfig(size=(0,)), ["size (0,)", "positive"]),
        (DataConfig(size=(8, -8)), ["size (8, -8)", "positive"]),
        (DataConfig(size=(8, 8, 8)), ["size (8, 8, 8)", "two (H W)"]),
        (DataConfig(size=8), ["size 8", "one positive number"]),  # pyright: ignore[reportArgumentType]
        (DataConfig(path="photos"), ["'photos'", "--data.source folder"]),
        (DataConfig(size=(4,), fit="pad"), ["digits image 0", "8x8", "4x4", "crop"]),
    ],
)
def test_wrong_fields(config: DataConfig, words: list[str], refuses) -> None:
    refuses(lambda: open_data(config), *words)


def test_missing_package(monkeypatch, refuses) -> None:
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    refuses(lambda: open_data(DataConfig()), "scikit-learn", "ditlab[demo]")


def test_more_than_the_machine_holds(monkeypatch, refuses) -> None:
    data = open_data(DataConfig())
    monkeypatch.setattr(os, "sysconf", lambda name: 100)
    refuses(data.load, "1,797 images", "--data.limit")
