"""Starts of a latent recipe whose images are files: what is listed, opened and noticed."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ditlab.data import DataConfig
from ditlab.recipes import RunContext, find_recipe
from ditlab.recipes.prepare import open_images
from ditlab.runtime.console import log_nothing

WATCHING: list[tuple[Path, list[str]]] = []


def _audit(event: str, arguments: tuple) -> None:
    if WATCHING and event in ("open", "os.scandir", "os.listdir") and isinstance(arguments[0], str | bytes | Path):
        folder, seen = WATCHING[-1]
        if os.fsdecode(arguments[0]).startswith(str(folder)):
            seen.append(f"{event} {os.fsdecode(arguments[0])}")


sys.addaudithook(_audit)  # cannot be removed again; does nothing while nothing is watched


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Forty gray images of 8x8 in two classes, as PNG files."""
    random = np.random.default_rng(0)
    for index in range(40):
        path = tmp_path / "photos" / ("cat" if index < 25 else "dog") / f"{index:02d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(random.integers(0, 256, (8, 8), np.uint8)).save(path)
    return tmp_path / "photos"


@pytest.fixture
def touched(photos: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Every open, scandir, listdir, stat and lstat in the folder of images, by name and path."""
    seen: list[str] = []

    def count(name: str, real: Callable) -> None:
        def counted(path, *arguments, **more):
            if not isinstance(path, int) and os.fsdecode(path).startswith(str(photos)):
                seen.append(f"os.{name} {os.fsdecode(path)}")
            return real(path, *arguments, **more)

        monkeypatch.setattr(os, name, counted)

    count("stat", os.stat)
    count("lstat", os.lstat)
    WATCHING.append((photos, seen))
    yield seen
    WATCHING.pop()


@pytest.fixture
def flags(tmp_path: Path, kl_run: Path, photos: Path) -> list[object]:
    """A recipe's flags: these images, and an autoencoder that exists already."""
    data = ["--data.source", "folder", "--data.path", photos, "--data.limit", "0"]
    return ["--autoencoder.path", kl_run.with_name("small-autoencoder"), *data, "--out", tmp_path / "run"]


def test_a_start_with_a_finished_cache_touches_no_image_file(
    ditlab: Callable, kl_recipe: Path, flags: list[object], photos: Path, touched: list[str]
):
    encoded = ditlab("encode", kl_recipe, *flags)
    assert (encoded.code, encoded.err) == (0, "")
    assert sum(line.endswith(".png") for line in touched) >= 40  # the counter counts
    assert {f"os.scandir {photos / name}" for name in ("cat", "dog")} <= set(touched)
    for _ in range(2):  # trains to the end, then finds that nothing is left to do
        touched.clear()
        trained = ditlab("train", kl_recipe, *flags)
        assert (trained.code, trained.err) == (0, "")
        assert f"{photos}: 40 images of 1x8x8, 2 classes" in trained.out
        folders = {f"os.stat {folder}" for folder in (photos, photos / "cat", photos / "dog")}
        assert set(touched) <= folders, touched
        assert len(touched) == 3


@pytest.mark.parametrize("change", ["added", "removed", "renamed"])
def test_changed_images_are_noticed_by_a_start(
    ditlab: Callable, refused: Callable, kl_recipe: Path, flags: list[object], photos: Path, change: str
):
    assert ditlab("encode", kl_recipe, *flags).code == 0
    first = photos / "cat" / "00.png"
    if change == "added":
        (photos / "dog" / "more.png").write_bytes(first.read_bytes())
    elif change == "removed":
        first.unlink()
    else:
        first.rename(photos / "cat" / "zero.png")
    refused(["train", kl_recipe, *flags], "-latents", "other images")


def test_a_file_edited_in_place_is_noticed_by_encode(
    ditlab: Callable, refused: Callable, kl_recipe: Path, flags: list[object], photos: Path
):
    assert ditlab("encode", kl_recipe, *flags).code == 0
    with (photos / "cat" / "00.png").open("ab") as file:
        file.write(b" ")
    refused(["encode", kl_recipe, *flags], "-latents", "other images")


def test_images_are_listed_again_where_the_index_is_missing_damaged_or_older_than_a_folder(
    ditlab: Callable, kl_recipe: Path, flags: list[object], photos: Path, tmp_path: Path, touched: list[str]
):
    assert ditlab("encode", kl_recipe, *flags).code == 0
    index = tmp_path / "run-latents" / "index.json"
    whole = index.read_bytes()
    recipe = replace(find_recipe(str(kl_recipe))[0], data=DataConfig("folder", str(photos)))
    context = RunContext(tmp_path / "run", torch.device("cpu"), log_nothing)

    def lists() -> bool:
        touched.clear()
        open_images(recipe, context)
        return f"os.scandir {photos / 'cat'}" in touched

    assert not lists()
    index.unlink()
    assert lists()
    index.write_text("[1]")
    assert lists()
    index.write_bytes(whole)
    assert not lists()
    os.utime(photos / "cat", ns=(0, 1))
    assert lists()
    assert ditlab("encode", kl_recipe, *flags).code == 0
    assert index.read_bytes() != whole  # of the folder's new time


def test_a_damaged_shard_is_encoded_again_from_images_that_are_the_same(
    ditlab: Callable,
    refused: Callable,
    kl_recipe: Path,
    flags: list[object],
    photos: Path,
    tmp_path: Path,
    tree: Callable,
):
    assert ditlab("encode", kl_recipe, *flags).code == 0
    folder = tmp_path / "run-latents"
    whole = tree(folder)
    (folder / "00000.rows.npy").unlink()
    ended = ditlab("train", kl_recipe, *flags)
    assert (ended.code, ended.err) == (0, "")
    assert tree(folder) == whole
    (folder / "00000.rows.npy").unlink()
    with (photos / "cat" / "00.png").open("ab") as file:
        file.write(b" ")
    refused(["train", kl_recipe, *flags], "have changed", "ditlab encode")
