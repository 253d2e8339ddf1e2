"""A small task on real digits."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from ditlab.data import DataConfig, open_data
from ditlab.diffusion import DiffusionConfig
from ditlab.encoders import Autoencoder
from ditlab.models import DiT, DiTConfig, LatentSpec, labelled
from ditlab.train import DiffusionTask


@pytest.fixture(scope="module")
def make_task() -> Callable[..., DiffusionTask]:
    """Makes a task with a network of three blocks, each time with the same weights, none of them zero."""
    images = open_data(DataConfig(source="digits", limit=64)).load()

    def make(learned_variance: bool = True) -> DiffusionTask:
        shape = labelled(LatentSpec(1, (8, 8)), 10, learned_variance=learned_variance)
        network = DiT(DiTConfig(depth=3, width=16, heads=2, patch=2), shape)
        network.initialise(torch.Generator().manual_seed(1))
        with torch.no_grad():  # no gate is zero, so that every block has a gradient
            for parameter in network.parameters():
                parameter.add_(0.02 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(2)))
        config = DiffusionConfig() if learned_variance else DiffusionConfig("rectified-flow", "velocity", False)
        return DiffusionTask(network, config.build_loss(), Autoencoder(1, 1, 1), images)

    return make
