"""Clips from rendered data to samples: in pixels and in latents of the causal autoencoder."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import ditlab as api
from ditlab.data import DataConfig, open_data
from ditlab.encoders import AutoencoderConfig, TextEncoderConfig
from ditlab.evaluate.bouncing import TASKS
from ditlab.models import DiTConfig
from ditlab.pipelines import Pipeline, SampleConfig
from ditlab.recipes import Recipe, find_recipe, train_recipe
from ditlab.recipes.prepare import RunContext
from ditlab.train import TrainConfig

SHORT = TrainConfig(images=64, batch=16, lr=1e-3, log=32, checkpoint=64, samples=64, threads=1, precision="fp32")
RECIPE = Recipe(
    name="clips",
    data=DataConfig(source="bouncing", size=(16,), frames=5, limit=48),
    text=TextEncoderConfig("tokens"),
    model=DiTConfig(depth=1, width=32, heads=2, patch=4, block="adaln-in-context"),
    diffusion=find_recipe("scenes")[0].diffusion,
    train=SHORT,
    autoencoder_train=SHORT,
    sample=SampleConfig("euler", 2),
    sample_images=4,
)


def run(folder: Path, recipe: Recipe) -> Pipeline:
    return train_recipe(recipe, RunContext(folder, torch.device("cpu"), lambda line: None))


@pytest.fixture(scope="module")
def clips_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("clips") / "run"
    run(folder, RECIPE)
    return folder


def test_clips_are_trained_in_pixels_and_sampled(clips_run: Path) -> None:
    model = api.load(clips_run)
    assert model.clips
    assert model.network.spec.latent.shape == (3, 5, 16, 16)
    images = open_data(RECIPE.data).load().pixels.astype(np.float64) / 127.5 - 1
    np.testing.assert_allclose(model.autoencoder.mean.flatten(), images.mean(axis=(0, 2, 3, 4)), atol=1e-4)
    made = model.sample(prompts=["a red circle moves right fast"], count=3, seed=1)
    assert (made.shape, made.dtype) == ((3, 5, 16, 16, 3), np.uint8)
    np.testing.assert_array_equal(model.sample(prompts=["a red circle moves right fast"], count=2, seed=1), made[:2])
    assert made._repr_png_() is not None
    assert not np.array_equal(made[:, 0], made[:, 1])


def test_the_grid_and_the_animation_of_the_command_line(ditlab: Callable, clips_run: Path, tmp_path: Path) -> None:
    for ending, frames in ((".webp", 5), (".gif", 5), (".apng", 5), (".png", 1)):
        out = tmp_path / f"x{ending}"
        ended = ditlab("sample", clips_run, "--prompt", "a red 3 bounces up", "--count", 2, "--fps", 4, "--out", out)
        assert ended.code == 0, ended
        assert f"2 clips: {out}" in ended.out
        with Image.open(out) as picture:
            assert getattr(picture, "n_frames", 1) == frames
            if ending == ".webp":
                picture.seek(1)
                picture.load()
                assert picture.info["duration"] == 250
                assert json.loads(picture.getexif()[270])["prompts"] == ["a red 3 bounces up"]
    assert not (tmp_path / "x-filmstrip.png").exists()


def test_what_does_not_play_and_what_is_no_clip_is_refused(
    refused: Callable, clips_run: Path, digits_run: Path, tmp_path: Path
) -> None:
    refused(["sample", clips_run, "--out", tmp_path / "x.npz"], "clips are written as .png", "'.npz'")
    refused(["sample", clips_run, "--fps", 0, "--out", tmp_path / "x.gif"], "--fps 0 must be above 0")
    refused(["sample", digits_run, "--out", tmp_path / "x.gif"], "makes images, which do not play")
    refused(
        ["evaluate", clips_run, "--out", tmp_path / "x"],
        "makes clips, and the features are of images",
        "--network none",
    )
    refused(["play", clips_run], "makes clips, and the page shows images")
    assert not list(tmp_path.iterdir())


def test_clips_are_trained_in_latents_of_the_causal_autoencoder(tmp_path: Path) -> None:
    autoencoder = AutoencoderConfig(kind="causal", latent_channels=2, widths=(8, 8), layers=1, time_factor=2)
    recipe = replace(RECIPE, autoencoder=autoencoder, model=replace(RECIPE.model, patch=2))
    model = run(tmp_path / "run", recipe)
    assert model.network.spec.latent.shape == (2, 3, 8, 8)  # 1 + (5 - 1) / 2 frames
    assert (tmp_path / "run-latents" / "manifest.json").exists()
    made = model.sample(prompts=["a blue 4 moves up"], count=2)
    assert made.shape == (2, 5, 16, 16, 3)
    again = api.load(tmp_path / "run")
    np.testing.assert_array_equal(again.sample(prompts=["a blue 4 moves up"], count=2), made)
    rows = [json.loads(line) for line in (tmp_path / "run-autoencoder" / "metrics.jsonl").read_text().splitlines()]
    assert any("psnr" in row for row in rows)


def test_clips_are_judged_by_their_prompts(ditlab: Callable, clips_run: Path, tmp_path: Path) -> None:
    ended = ditlab("evaluate", clips_run, "--network", "none", "--task-prompts", 2, "--out", tmp_path / "x")
    assert ended.code == 0, ended
    assert "| direction | " in ended.out
    found = json.loads((tmp_path / "x" / "language.json").read_text())
    assert {each["task"] for each in found["tasks"]["scores"]} == set(TASKS)
    assert found["loss"]["own"] > 0
    model = api.load(clips_run)
    clips = np.moveaxis(open_data(RECIPE.data).load().pixels[:2], 1, -1)
    np.testing.assert_array_equal(model.decode(model.encode(clips)), clips)  # pixels


def test_a_data_set_of_clips_is_shown_as_rows_of_frames(ditlab: Callable, tmp_path: Path) -> None:
    ended = ditlab("data", "bouncing", "--data.limit", 20, "--data.frames", 9, "--out", tmp_path / "data.png")
    assert ended.code == 0, ended
    assert "20 clips of 3x9x32x32" in ended.out
    with Image.open(tmp_path / "data.png") as picture:
        assert picture.width > 8 * 64
