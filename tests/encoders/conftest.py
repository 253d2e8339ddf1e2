"""Tiny real autoencoders."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch

from ditlab.encoders import AutoencoderConfig, DiffusersAutoencoder, new_kl

TINY = AutoencoderConfig(kind="kl", latent_channels=2, widths=(8, 16), layers=1)


@pytest.fixture
def kl() -> Callable[..., DiffusersAutoencoder]:
    """A KL autoencoder of factor 2 with two latent channels, in evaluation mode."""

    def make(channels: int = 1, seed: int = 0, config: AutoencoderConfig = TINY) -> DiffusersAutoencoder:
        autoencoder = new_kl(config, channels, seed).eval()
        assert isinstance(autoencoder, DiffusersAutoencoder)
        return autoencoder

    return make


@pytest.fixture(autouse=True)
def no_gradients() -> Iterator[None]:
    with torch.no_grad():
        yield
