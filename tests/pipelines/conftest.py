"""Tiny real models whose every weight matters, and the one check that every message to a person must pass."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from specs import image_spec

from ditlab.diffusion import DiffusionConfig
from ditlab.encoders import Autoencoder
from ditlab.models import DiT, DiTConfig
from ditlab.pipelines import Pipeline, SampleConfig

FLOW = DiffusionConfig(schedule="rectified-flow", target="velocity", learned_variance=False)


def build(
    pixels: tuple[int, int, int] = (1, 8, 8),
    names: tuple[str, ...] = ("cat", "Dog", "fish"),
    diffusion: DiffusionConfig = FLOW,
    autoencoder: Autoencoder | None = None,
    null_class: bool = True,
    classes: int | None = None,
    defaults: SampleConfig = SampleConfig("euler", 4),  # noqa: B008
    config: DiTConfig = DiTConfig(depth=2, width=16, heads=2),  # noqa: B008
) -> Pipeline:
    if autoencoder is None:
        autoencoder = Autoencoder(pixels[0], pixels[0], 1)
        autoencoder.set_statistics(torch.linspace(-0.4, 0.1, pixels[0]), torch.linspace(0.5, 0.8, pixels[0]))
    channels, height, width = autoencoder.latent_shape(pixels[1:])
    shape = image_spec(
        channels=channels, height=height, width=width, classes=len(names) if classes is None else classes,
        learned_variance=diffusion.learned_variance, null=null_class,
    )  # fmt: skip
    network = DiT(config, shape)
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for parameter in network.parameters():  # a network as initialised predicts zero, whatever it is asked
            parameter.normal_(std=0.3, generator=generator)
    return Pipeline(network.eval(), diffusion, autoencoder.eval(), names, defaults)


@pytest.fixture
def make() -> Callable[..., Pipeline]:
    """A model with random weights; rectified flow on 8x8 pixels of three classes unless told otherwise."""
    return build
