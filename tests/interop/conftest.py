"""A model of the paper's process that other code can be given."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from specs import class_count, image_spec
from torch import nn

from ditlab.diffusion import DiffusionConfig
from ditlab.encoders import AutoencoderConfig, new_kl
from ditlab.models import DiT, DiTConfig, NetworkSpec
from ditlab.pipelines import Pipeline, SampleConfig

NAMES = ("cat", "dog", "wren")
PAPER = DiffusionConfig()


def build(
    width: int = 64, diffusion: DiffusionConfig = PAPER, shape: NetworkSpec | None = None, **config: Any
) -> Pipeline:
    """A model no weight of which is zero, whose latents have a mean and a spread of their own in each channel."""
    shape = shape or image_spec(3, 4, 4, len(NAMES), diffusion.learned_variance)
    network = DiT(replace(DiTConfig(depth=2, width=width, heads=4, patch=2), **config), shape)
    generator = torch.Generator().manual_seed(0)
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.08, generator=generator)
    autoencoder = new_kl(AutoencoderConfig(kind="kl", latent_channels=3, widths=(16, 16), layers=1), 1, seed=0)
    for convolution in (autoencoder.vae.quant_conv, autoencoder.vae.post_quant_conv):
        nn.init.normal_(convolution.weight, std=0.5, generator=generator)
        nn.init.normal_(convolution.bias, std=0.5, generator=generator)
    autoencoder.set_statistics(torch.tensor([0.5, -1.0, 0.2]), torch.tensor([2.0, 0.7, 1.1]))
    names = NAMES[: class_count(shape)]
    return Pipeline(network.eval(), diffusion, autoencoder.eval(), names, SampleConfig())


@pytest.fixture(scope="session")
def model() -> Callable[..., Pipeline]:
    """Builds one; its arguments change it."""
    return build
