"""Figures of a network's internals, against what the network computes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from specs import image_spec
from torch import nn

from ditlab.diffusion import DiffusionConfig
from ditlab.encoders import Autoencoder
from ditlab.encoders.text_tokens import WordTokens
from ditlab.models import Condition, DiT, DiTConfig, UNetConfig, build
from ditlab.models.condition_embedding import TextConfig
from ditlab.models.spec import LatentSpec, NetworkSpec
from ditlab.pipelines import Pipeline, SampleConfig
from ditlab.playground.inspection import Inspection, modulation, rms
from ditlab.playground.words import word_attention, word_figure, words_figure, words_of

FLOW = DiffusionConfig(schedule="rectified-flow", target="velocity", learned_variance=False)


SMALL = DiTConfig(depth=3, width=16, heads=2)


def build_pipeline(config: Any = SMALL, diffusion: DiffusionConfig = FLOW, classes: int = 4) -> Pipeline:
    autoencoder = Autoencoder(1, 1, 1)
    autoencoder.set_statistics(torch.tensor([-0.2]), torch.tensor([0.6]))
    shape = image_spec(1, 8, 12, classes, diffusion.learned_variance)
    network, generator = build(config, shape), torch.Generator().manual_seed(1)
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.2, generator=generator)
    names = tuple(f"<b>{k}</b>" for k in range(classes))
    return Pipeline(network.eval(), diffusion, autoencoder.eval(), names, SampleConfig("euler", 3))


def inspect(model: Pipeline, label: int, seed: int) -> Inspection:
    *_, last = model.states(Condition.of_labels(torch.tensor([label])), seed, 0, model.defaults)
    return Inspection(model, Condition.of_labels(torch.tensor([label])), seed, last.x_s, model.decode(last.x_s)[0])


def test_the_image_is_that_of_the_seed_and_clicks_select_patches():
    model = build_pipeline()
    inspection = inspect(model, 2, seed=5)
    assert np.abs(inspection.image.astype(int) - model.sample([2], seed=5)[0]).max() <= 1
    assert inspection.patches == (4, 6)
    picture = inspection.patch_figure(0)
    width, height = picture.size
    assert [inspection.patch_at(x, y) for x, y in ((0, 0), (width - 1, 0), (0, height - 1), (width - 1, height - 1))] == [
        0, 5, 18, 23,
    ]  # fmt: skip
    assert inspection.patch_at(width / 2 + 1, height / 2 + 1) == 2 * 6 + 3
    assert inspection.patch_at(10**9, -5) == 5
    for patch in (0, 9):  # the marked patch is the one with the coloured corner
        row, column = divmod(patch, 6)
        corner = (column * width // 6 + 1, row * height // 4 + 1)
        assert inspection.patch_figure(patch).getpixel(corner) == (255, 120, 0)


@pytest.mark.parametrize("diffusion", [FLOW, DiffusionConfig()])
def test_predictions_are_the_models_own(diffusion: DiffusionConfig):
    model = build_pipeline(diffusion=diffusion)
    inspection = inspect(model, 1, seed=0)
    x, x0 = inspection.predict(0.5)
    point = inspection.noised(0.5)[1]
    torch.testing.assert_close(x, point.alpha * inspection.latent + point.sigma * inspection.noise)
    with torch.no_grad():
        torch.testing.assert_close(x0, model.denoiser.predict(x, point, Condition.of_labels(torch.tensor([1]))).x0)
    assert inspection.prediction_figure(0.33).width > 100
    assert inspection.channel_figure(0.33).width > 60


@pytest.mark.parametrize("block", ["adaln-zero", "adaln", "cross-attention", "in-context"])
def test_attention_is_what_the_block_attends_with(block: str):
    model = build_pipeline(DiTConfig(depth=3, width=16, heads=2, block=block, positions="rotary", qk_norm=True))  # type: ignore[arg-type]
    inspection = inspect(model, 1, seed=0)
    weights = inspection.attention(0.4, 2)
    assert weights.shape == (2, 24, 24)
    sums = weights.sum(axis=-1)
    if block == "in-context":  # a part goes to the two tokens of the condition
        assert (sums < 1).all()
        assert (sums > 0).all()
    else:
        np.testing.assert_allclose(sums, 1, atol=1e-5)
    assert not np.allclose(weights, inspection.attention(0.4, 0))
    assert not np.allclose(weights, inspection.attention(0.9, 2))
    assert inspection.attention_figure(0.4, 2, 7).width > 100
    network: Any = model.network
    assert not network.blocks[2].attention._forward_pre_hooks


@pytest.mark.parametrize("rank", [0, 3])
@pytest.mark.parametrize("block", ["adaln-zero", "adaln"])
def test_modulation_vectors_are_those_of_the_blocks(block: str, rank: int):
    model = build_pipeline(DiTConfig(depth=3, width=16, heads=2, block=block, modulation_rank=rank))  # type: ignore[arg-type]
    network = model.network
    assert isinstance(network, DiT)
    seen = list[torch.Tensor]()

    def keep(module: Any, given: tuple) -> None:
        seen.append(torch.stack(module.modulation_vectors(given[2], given[3], given[4]))[:, :, 0])

    hooks = [each.register_forward_pre_hook(keep) for each in network.blocks]
    t, labels = torch.tensor([120.0, 700.0]), torch.tensor([3, 0])
    with torch.no_grad():
        network(torch.randn(2, 1, 8, 12), t, Condition.of_labels(labels))
    for hook in hooks:
        hook.remove()
    torch.testing.assert_close(modulation(network, t, Condition.of_labels(labels)), torch.stack(seen))
    np.testing.assert_allclose(rms(torch.full((1, 2, 3, 4), -2.0)), 2)
    assert inspect(model, 0, 0).modulation_figure(0.5).width > 100


def test_missing_parts_are_reported(refuses: Callable):
    unet = build_pipeline(UNetConfig(width=8, multipliers=(1.0, 2.0), blocks=1, attention=(), head_width=8))
    refuses(lambda: inspect(unet, 0, 0).patch_figure(0), "U-Net", "select a DiT")
    tokens = inspect(build_pipeline(DiTConfig(depth=2, width=16, heads=2, block="in-context")), 0, 0)
    refuses(lambda: tokens.modulation_figure(0.5), "in-context", "no modulation")
    refuses(lambda: tokens.attention(0.5, 2), "blocks 0 to 1")


def test_unconditional_and_latent_models(kl_run: Path):
    inspection = inspect(build_pipeline(classes=0), -1, 0)
    assert inspection.modulation_figure(0.5).width > 100
    latent = inspect(replace_defaults(Pipeline.load(kl_run)), 3, 1)
    assert latent.image.shape == (8, 8, 1)
    assert latent.patches == (2, 2)
    assert latent.channel_figure(0.5).width > 60


def replace_defaults(model: Pipeline) -> Pipeline:
    model.defaults = replace(model.defaults, steps=2)
    return model


TEXT_BLOCKS = ("in-context", "cross-attention", "adaln-cross-attention", "adaln-in-context", "joint")


def prompted(block: str, prompt: str) -> Inspection:
    text = WordTokens(["red", "blue", "shape"], 8)
    config = DiTConfig(depth=3, width=16, heads=2, block=block, positions="rotary", qk_norm=True)
    network, generator = build(config, text_spec(text.vocabulary)), torch.Generator().manual_seed(1)
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.2, generator=generator)
    autoencoder = Autoencoder(1, 1, 1)
    model = Pipeline(
        network.eval(), FLOW, autoencoder.eval(), (), SampleConfig("euler", 3), text=text, prompts=("red", "blue shape")
    )
    condition = model.condition([prompt], 1)
    *_, last = model.states(condition, 0, 0, model.defaults)
    return Inspection(model, condition, 0, last.x_s, model.decode(last.x_s)[0], prompt)


def text_spec(vocabulary: int) -> NetworkSpec:
    return NetworkSpec(LatentSpec(1, (8, 12)), (TextConfig(vocabulary=vocabulary),))


@pytest.mark.parametrize("block", TEXT_BLOCKS)
def test_attention_to_words_is_what_patches_attend_with(block: str):
    inspection = prompted(block, "a RED shape, blue")
    assert words_of(inspection) == ["red", "shape", "blue"]
    weights = word_attention(inspection, 0.4)
    assert weights.shape == (3, 3, 4, 6)
    assert (weights > 0).all()
    shares = weights.sum(axis=1)
    if block == "adaln-cross-attention":
        np.testing.assert_allclose(shares, 1, atol=1e-5)
    else:  # a part goes to patches, or to the tokens of the time and the pooled text
        assert (shares < 1).all()
    assert words_figure(inspection, weights).width > 300
    assert word_figure(inspection, weights, 1).width > 300
    network: Any = inspection.model.network
    for each in network.blocks:
        assert not (getattr(each, "cross_attention", None) or each.attention)._forward_pre_hooks
    entry = inspection.condition.entries["text"]
    for word in range(3):  # without a word, no patch attends to it, and all attend to the others
        mask = torch.arange(3)[None] != word
        inspection.condition = Condition({"text": replace(entry, mask=mask)})
        found = word_attention(inspection, 0.4)
        assert (found[:, word] == 0).all()
        assert (np.delete(found, word, axis=1) > 0).all()


@pytest.mark.parametrize("block", ["adaln-in-context", "adaln-cross-attention"])
def test_an_empty_prompt_attends_to_the_null(block: str):
    inspection = prompted(block, "zebra")
    assert words_of(inspection) == ["no prompt"]
    weights = word_attention(inspection, 0.4)
    assert weights.shape[:2] == (3, 1)
    assert words_figure(inspection, weights).width > 100


def test_models_without_attention_to_words_say_so(refuses: Callable):
    refuses(lambda: word_attention(prompted("adaln-zero", "red"), 0.5), "adaln-zero", "attend to no word")
    refuses(lambda: word_attention(inspect(build_pipeline(), 0, 0), 0.5), "takes no prompts")
    inspection = prompted("joint", "red blue")
    refuses(lambda: word_figure(inspection, word_attention(inspection, 0.5), 2), "words 0 to 1")


@pytest.mark.parametrize("block", ["joint", "adaln-cross-attention"])
def test_modulation_of_a_model_of_prompts(block: str):
    heights = prompted(block, "red").modulation_figure(0.5).height
    alone = prompted(block, "red")
    alone.model.prompts = ()  # no other prompts to compare with
    assert (alone.modulation_figure(0.5).height < heights) == (block != "adaln-cross-attention")
