"""A run survives that its images are moved, and names what has changed in them."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import ditlab
from ditlab.errors import UserError


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    random = np.random.default_rng(0)
    for name in ("cat", "dog"):
        (tmp_path / "photos" / name).mkdir(parents=True)
        for index in range(6):
            Image.fromarray(random.integers(0, 256, (8, 8, 3), np.uint8)).save(tmp_path / f"photos/{name}/{index}.png")
    return tmp_path / "photos"


def trained(path: Path | str, out: Path | str, images: int = 8) -> ditlab.Pipeline:
    recipe = ditlab.recipe(
        "digits", data={"source": "folder", "path": str(path)}, model={"depth": 1, "width": 16, "heads": 1},
        train={"images": images, "batch": 8, "checkpoint": 8, "samples": 1000}, sample={"steps": 2, "sampler": "euler"},
    )  # fmt: skip
    return ditlab.train(recipe, out=out)


def test_a_run_goes_on_from_anywhere_and_with_images_that_were_moved(photos, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    trained("photos", "run")
    assert ditlab.recipe("run").data.path == str(photos)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir("elsewhere")
    assert trained(os.path.relpath(photos), tmp_path / "run", 16).counts == (6, 6)
    shutil.move(photos, tmp_path / "moved")
    assert trained(tmp_path / "moved", tmp_path / "run", 24).facts["images"] == 24
    assert ditlab.recipe(tmp_path / "run").data.path == str(tmp_path / "moved")


def test_a_run_is_evaluated_with_images_that_were_moved(photos, tmp_path, refused) -> None:
    run, moved, other = tmp_path / "run", tmp_path / "moved", tmp_path / "other"
    trained(photos, run)
    before = ditlab.evaluate(run, count=8, steps=1)
    shutil.move(photos, moved)
    shutil.copytree(moved / "cat", other / "cat")
    words = ["evaluate", run, "--count", 8, "--steps", 1]
    refused(words, f"no longer at {photos}", "--data.path", "--reference")
    refused([*words, "--data.path", other], "class dog is missing", "--data.path", "--reference")
    refused([*words, "--data.path", moved, "--reference", other], "--data.path", "train or test")
    after = ditlab.evaluate(run, count=8, steps=1, data=moved)
    assert after.numbers == before.numbers


def test_what_has_changed_in_the_images_is_named(photos, tmp_path) -> None:
    trained(photos, tmp_path / "run")

    def refused(*words: str) -> None:
        with pytest.raises(UserError) as error:
            trained(photos, tmp_path / "run", 16)
        assert all(word in str(error.value) for word in (str(tmp_path / "run"), "--out", *words)), error.value

    (photos / "bird").mkdir()
    shutil.copy(photos / "cat" / "0.png", photos / "bird")
    refused("class bird is new", "12 images there, 13 here")
    shutil.rmtree(photos / "bird")
    (photos / "cat" / "0.png").rename(photos / "dog" / "6.png")
    refused("names, sizes or labels differ")
    (photos / "dog").rename(photos / "wolf")
    refused("class wolf is new; class dog is missing")
    shutil.rmtree(photos / "wolf")
    refused("class dog is missing")


@pytest.mark.parametrize("kind", ["pixels", "kl"])
def test_a_class_of_unreadable_images_is_said_and_never_sampled(photos, tmp_path, kind) -> None:
    (photos / "bird").mkdir()
    (photos / "bird" / "0.png").write_bytes(b"no image")
    recipe = ditlab.recipe(
        "digits", data={"source": "folder", "path": str(photos)}, model={"depth": 1, "width": 16, "heads": 1, "patch": 1},
        train={"images": 8, "batch": 8, "checkpoint": 8, "samples": 1000}, sample={"steps": 2, "sampler": "euler"},
        autoencoder={"kind": kind, "widths": [8, 8]}, autoencoder_train={"images": 8, "batch": 8, "checkpoint": 8},
    )  # fmt: skip
    lines: list[str] = []
    model = ditlab.train(recipe, out=tmp_path / "run", log=lines.append)
    assert "classes without readable images, never sampled: bird" in lines
    assert model.counts == (0, 6, 6)
    assert model.trained_labels == [1, 2]
