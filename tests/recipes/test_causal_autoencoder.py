"""A causal autoencoder trained on images, which are clips of one frame, and a network on its latents."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import ditlab as api
from ditlab.data import open_data
from ditlab.encoders import AutoencoderConfig, record
from ditlab.encoders.causal import CausalAutoencoder
from ditlab.errors import UserError
from ditlab.recipes import find_recipe, train_recipe
from ditlab.recipes.prepare import RunContext
from ditlab.train import TrainConfig

SHORT = TrainConfig(images=256, batch=32, lr=4e-3, log=128, checkpoint=256, samples=256, threads=1)


def test_images_are_trained_stored_and_sampled(tmp_path: Path) -> None:
    recipe, _ = find_recipe("digits")
    config = AutoencoderConfig(kind="causal", latent_channels=2, widths=(8, 8), layers=1, time_factor=2, kl_weight=1e-4)
    recipe = replace(
        recipe, autoencoder=config, autoencoder_train=replace(SHORT, images=2_560), train=SHORT, sample_images=4,
        model=replace(recipe.model, depth=1, width=32, heads=2, patch=1), data=replace(recipe.data, limit=500),
    )  # fmt: skip
    model = train_recipe(recipe, RunContext(tmp_path / "run", torch.device("cpu"), lambda line: None))
    rows = [json.loads(line) for line in (tmp_path / "run-autoencoder" / "metrics.jsonl").read_text().splitlines()]
    psnr = [row["psnr"] for row in rows if "psnr" in row]
    assert psnr[-1] > 12  # decibels; of a grey image 9
    assert model.network.spec.latent.shape == (2, 1, 4, 4)
    assert model.sample(labels=["3"], count=2, steps=2).shape == (2, 8, 8, 1)
    images = open_data(recipe.data).load().pixels.transpose(0, 2, 3, 1)
    assert model.decode(model.encode(images)).shape == images.shape
    again = api.load(tmp_path / "run")
    assert isinstance(again.autoencoder, CausalAutoencoder)
    assert again.autoencoder.fingerprint() == model.autoencoder.fingerprint()
    assert again.autoencoder.to_config() == replace(config, kl_weight=AutoencoderConfig.kl_weight)
    assert torch.equal(again.autoencoder.std, record.load(tmp_path / "run-autoencoder").std)
    latents = model.encode(images)
    assert latents.std() == pytest.approx(1, abs=0.2)
    with pytest.raises(UserError, match=r"this model's are \(N, 2, f, h, w\)"):
        model.decode(latents[:, :, 0])


def test_a_factor_in_time_that_the_levels_do_not_allow_is_refused_before_training(tmp_path: Path) -> None:
    recipe, _ = find_recipe("digits")
    config = AutoencoderConfig(kind="causal", latent_channels=2, widths=(8, 8), layers=1)
    recipe = replace(recipe, autoencoder=config, model=replace(recipe.model, patch=1))
    with pytest.raises(UserError, match=r"--autoencoder\.time-factor 4 must be a power of two, at most 2"):
        train_recipe(recipe, RunContext(tmp_path / "run", torch.device("cpu"), lambda line: None))
    assert not (tmp_path / "run-autoencoder").exists()
