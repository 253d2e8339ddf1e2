"""Tiny real autoencoders, and the one check that every message to a person must pass."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from ditlab.errors import UserError
from ditlab.latents import AutoencoderConfig, DiffusersAutoencoder, new_kl

TINY = AutoencoderConfig(kind="kl", latent_channels=2, widths=(8, 16), layers=1)


@pytest.fixture
def kl() -> Callable[..., DiffusersAutoencoder]:
    """A KL autoencoder of factor 2 with two latent channels, in evaluation mode."""

    def make(channels: int = 1, seed: int = 0, config: AutoencoderConfig = TINY) -> DiffusersAutoencoder:
        autoencoder = new_kl(config, channels, seed).eval()
        assert isinstance(autoencoder, DiffusersAutoencoder)
        return autoencoder

    return make


@pytest.fixture
def refuses() -> Callable[..., str]:
    """Call something and return its UserError's text after checking that it is one line with the words given."""

    def check(call: Callable[[], object], *words: str) -> str:
        with pytest.raises(UserError) as caught:
            call()
        message = str(caught.value)
        assert "\n" not in message
        for word in words:
            assert word in message, message
        return message

    return check


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No network and an empty hub cache."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))


@pytest.fixture(autouse=True)
def no_gradients() -> Iterator[None]:
    with torch.no_grad():
        yield
