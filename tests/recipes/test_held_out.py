"""Held-out images of a recipe in latents: encoded once into the cache, and a loss of them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ditlab.data import DataConfig, open_data
from ditlab.encoders import AutoencoderConfig, new_kl
from ditlab.recipes import Recipe
from ditlab.recipes.held_out import HELD_OUT, encode_held_out, held_out_data

CPU = torch.device("cpu")


@pytest.mark.parametrize("split", [True, False])
def test_moments_of_the_test_split_are_kept_in_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, split: bool):
    recipe = Recipe(data=DataConfig(source="digits"))
    images = open_data(replace(recipe.data, limit=20)).load()
    autoencoder = new_kl(AutoencoderConfig(kind="kl", latent_channels=2, widths=(8, 16)), 1, 0)
    if split:  # digits have none
        monkeypatch.setattr("ditlab.recipes.held_out.open_data", lambda *_: open_data(replace(recipe.data, limit=20)))
    encode_held_out(recipe, tmp_path, autoencoder, CPU)
    before = (tmp_path / HELD_OUT).read_bytes()
    monkeypatch.setattr("ditlab.recipes.held_out.open_data", lambda *_: pytest.fail("opened again"))
    encode_held_out(recipe, tmp_path, autoencoder, CPU)
    assert (tmp_path / HELD_OUT).read_bytes() == before
    cache: Any = [None] * 30  # stands for training latents
    data, what = held_out_data(recipe, cache, tmp_path, lambda make: make())
    if not split:
        assert data is cache
        assert what.startswith("30 training images, since none are held out")
        return
    assert what == "20 images of the test split"
    with torch.no_grad():
        expected = autoencoder.encode(torch.from_numpy(images.pixels).float() / 127.5 - 1)
    np.testing.assert_allclose(data.read(np.arange(20), np.zeros(20, bool)), expected.numpy(), atol=1e-5)
    assert data.labels.tolist() == images.labels.tolist()
