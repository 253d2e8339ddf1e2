"""What is shown of a model's inside is what the model computes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from ditlab.diffusion import DiffusionConfig
from ditlab.encoders import Autoencoder
from ditlab.models import Condition, DiT, DiTConfig, NetworkInput, UNetConfig, build
from ditlab.pipelines import Pipeline, SampleConfig, denoising, to_images
from ditlab.playground.inside import Subject, modulation, strength

FLOW = DiffusionConfig(schedule="rectified-flow", target="velocity", learned_variance=False)


SMALL = DiTConfig(depth=3, width=16, heads=2)


def made(config: Any = SMALL, diffusion: DiffusionConfig = FLOW, classes: int = 4) -> Pipeline:
    autoencoder = Autoencoder(1, 1, 1)
    autoencoder.set_statistics(torch.tensor([-0.2]), torch.tensor([0.6]))
    shape = NetworkInput(1, 8, 12, classes, diffusion.learned_variance)
    network, generator = build(config, shape), torch.Generator().manual_seed(1)
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.2, generator=generator)
    names = tuple(f"<b>{k}</b>" for k in range(classes))
    return Pipeline(network.eval(), diffusion, autoencoder.eval(), (1, 8, 12), names, SampleConfig("euler", 3))


def looked_at(model: Pipeline, label: int, seed: int) -> Subject:
    *_, last = denoising(model, torch.tensor([label]), seed, 0, model.defaults)
    return Subject(model, label, seed, last.x, to_images(model, last.x)[0])


def test_the_image_is_that_of_the_seed_and_patches_are_where_they_are_clicked():
    model = made()
    subject = looked_at(model, 2, seed=5)
    assert np.abs(subject.image.astype(int) - model.sample([2], seed=5)[0]).max() <= 1
    assert subject.patches == (4, 6)
    picture = subject.cut(0)
    width, height = picture.size
    assert [subject.patch_at(x, y) for x, y in ((0, 0), (width - 1, 0), (0, height - 1), (width - 1, height - 1))] == [
        0, 5, 18, 23,
    ]  # fmt: skip
    assert subject.patch_at(width / 2 + 1, height / 2 + 1) == 2 * 6 + 3
    assert subject.patch_at(10**9, -5) == 5
    for chosen in (0, 9):  # the marked patch is the one with the coloured corner
        row, column = divmod(chosen, 6)
        corner = (column * width // 6 + 1, row * height // 4 + 1)
        assert subject.cut(chosen).getpixel(corner) == (255, 120, 0)


@pytest.mark.parametrize("diffusion", [FLOW, DiffusionConfig()])
def test_predictions_are_the_models_own(diffusion: DiffusionConfig):
    model = made(diffusion=diffusion)
    subject = looked_at(model, 1, seed=0)
    x, x0 = subject.predicted(0.5)
    point = subject.noised(0.5)[1]
    torch.testing.assert_close(x, point.alpha * subject.latent + point.sigma * subject.noise)
    with torch.no_grad():
        torch.testing.assert_close(x0, model.denoiser(x, point, Condition(torch.tensor([1]))).x0)
    assert subject.predictions(0.33).width > 100
    assert subject.channels(0.33).width > 60


@pytest.mark.parametrize("block", ["adaln-zero", "adaln", "cross-attention", "in-context"])
def test_attention_is_what_the_block_attends_with(block: str):
    model = made(DiTConfig(depth=3, width=16, heads=2, block=block, positions="rotary", qk_norm=True))  # type: ignore[arg-type]
    subject = looked_at(model, 1, seed=0)
    weights = subject.attention(0.4, 2)
    assert weights.shape == (2, 24, 24)
    sums = weights.sum(axis=-1)
    if block == "in-context":  # a part goes to the two tokens of the condition
        assert (sums < 1).all()
        assert (sums > 0).all()
    else:
        np.testing.assert_allclose(sums, 1, atol=1e-5)
    assert not np.allclose(weights, subject.attention(0.4, 0))
    assert not np.allclose(weights, subject.attention(0.9, 2))
    assert subject.attention_figure(0.4, 2, 7).width > 100
    network: Any = model.network
    assert not network.blocks[2].attention._forward_pre_hooks


@pytest.mark.parametrize("rank", [0, 3])
@pytest.mark.parametrize("block", ["adaln-zero", "adaln"])
def test_modulation_is_what_the_blocks_are_modulated_with(block: str, rank: int):
    model = made(DiTConfig(depth=3, width=16, heads=2, block=block, modulation_rank=rank))  # type: ignore[arg-type]
    network = model.network
    assert isinstance(network, DiT)
    seen = list[torch.Tensor]()

    def keep(module: Any, given: tuple) -> None:
        seen.append(torch.stack(module.vectors_of(given[1], given[3])))

    hooks = [each.register_forward_pre_hook(keep) for each in network.blocks]
    t, labels = torch.tensor([120.0, 700.0]), torch.tensor([3, 0])
    with torch.no_grad():
        network(torch.randn(2, 1, 8, 12), t, Condition(labels))
    for hook in hooks:
        hook.remove()
    torch.testing.assert_close(modulation(network, t, labels), torch.stack(seen))
    np.testing.assert_allclose(strength(torch.full((1, 2, 3, 4), -2.0)), 2)
    assert looked_at(model, 0, 0).modulation_figure(0.5).width > 100


def test_what_a_model_has_not_is_said(refuses: Callable):
    unet = made(UNetConfig(width=8, multipliers=(1.0, 2.0), blocks=1, attention=(), head_width=8))
    refuses(lambda: looked_at(unet, 0, 0).cut(0), "U-Net", "choose a DiT")
    tokens = looked_at(made(DiTConfig(depth=2, width=16, heads=2, block="in-context")), 0, 0)
    refuses(lambda: tokens.modulation_figure(0.5), "in-context", "not modulated")
    refuses(lambda: tokens.attention(0.5, 2), "blocks 0 to 1")


def test_unconditional_models_are_looked_at_too(kl_run: Path):
    subject = looked_at(made(classes=0), -1, 0)
    assert subject.modulation_figure(0.5).width > 100
    latent = looked_at(replace_defaults(Pipeline.load(kl_run)), 3, 1)
    assert latent.image.shape == (8, 8, 1)
    assert latent.patches == (2, 2)
    assert latent.channels(0.5).width > 60


def replace_defaults(model: Pipeline) -> Pipeline:
    model.defaults = replace(model.defaults, steps=2)
    return model
