"""The contracts that language, video, packing and one-step sampling rely on, each on a tiny DiT."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from specs import TEXT_BLOCKS, condition_of, spec_of_block, text_entry
from torch import Tensor, nn

from ditlab.diffusion import ClassifierFreeGuidance, Denoiser, GuidanceConfig, Query, RectifiedFlow, schedule_steps
from ditlab.diffusion.denoiser import DATA, frame_step
from ditlab.errors import UserError
from ditlab.models import (
    ChannelsConfig,
    Condition,
    DiT,
    DiTConfig,
    Entry,
    LabelsConfig,
    LatentSpec,
    NetworkSpec,
    TextConfig,
    labelled,
)
from ditlab.models.blocks import BLOCKS, Context
from ditlab.models.layout import Layout

SMALL = DiTConfig(depth=2, width=32, heads=2, patch=2, positions="rotary")
ADAPTIVE = ("adaln-zero", "adaln")
DESIGNS = tuple(BLOCKS)


def built(spec: NetworkSpec, config: DiTConfig = SMALL) -> DiT:
    """A network with no weight at zero."""
    network, generator = DiT(config, spec), torch.Generator().manual_seed(3)
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.2, generator=generator)
    return network.eval()


def noise(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def labels(*values: int) -> Condition:
    return Condition.of_labels(torch.tensor(values))


@pytest.mark.parametrize("block", [*ADAPTIVE, "adaln-cross-attention"])
@pytest.mark.parametrize("modulation", [{}, {"modulation_rank": 4}, {"shared_modulation": True}], ids=str)
def test_a_time_a_frame_with_equal_times_is_a_time_a_clip_to_the_bit(block: str, modulation: dict[str, Any]) -> None:
    spec = spec_of_block(labelled(LatentSpec(2, (3, 8, 12)), 4), block)
    network = built(spec, replace(SMALL, block=block, heads=4, **modulation))
    assert network.supports.frame_times
    condition = condition_of(spec, torch.tensor([0, 3, 1, 2]))
    x, t = (
        noise(4, 2, 3, 8, 12),
        torch.tensor([17.0, 500.0, 3.0, 900.0]),
    )  # matrix products of 4 rows or more, see below
    clip = network(x, t, condition)
    times = t[:, None].repeat(1, 3)
    assert torch.equal(network(x, times, condition), clip)  # of 1 to 3 rows MKL rounds otherwise
    times[0, 2] = 3.0
    other = network(x, times, condition)
    changed = (other - clip).abs().amax(dim=(1, 3, 4))
    assert changed[0].min() > 1e-3  # attention carries the third frame's time to the others
    assert changed[1:].max() == 0


def test_an_image_is_a_clip_of_one_frame() -> None:
    config = replace(SMALL, positions="sincos")
    image, clip = (
        built(labelled(LatentSpec(2, (8, 12)), 4), config),
        built(labelled(LatentSpec(2, (5, 8, 12)), 4), config),
    )
    x, t = noise(2, 2, 8, 12), torch.tensor([17.0, 500.0])
    torch.testing.assert_close(clip(x[:, :, None], t, labels(0, 3))[:, :, 0], image(x, t, labels(0, 3)))


@pytest.mark.parametrize("block", ADAPTIVE)
@pytest.mark.parametrize("length", [0, 96])
def test_a_pack_of_two_sizes_is_each_alone_in_outputs_and_gradients(block: str, length: int) -> None:
    network = built(labelled(LatentSpec(3, (8, 8)), 4), replace(SMALL, block=block))
    samples, t, condition = [noise(3, 8, 8), noise(3, 12, 16, seed=2)], torch.tensor([20.0, 700.0]), labels(1, 2)

    def gradients(outputs: list[Tensor]) -> list[Tensor]:
        network.zero_grad()
        sum((output**2).sum() for output in outputs).backward()  # type: ignore[union-attr]
        return [parameter.grad.clone() for parameter in network.parameters() if parameter.grad is not None]

    packed = network.forward_pack(samples, t, condition, length=length)
    alone = [network(samples[k][None], t[k : k + 1], condition.select(slice(k, k + 1)))[0] for k in (0, 1)]
    torch.testing.assert_close(packed, alone, atol=1e-5, rtol=1e-5)
    for found, expected in zip(gradients(packed), gradients(alone), strict=True):
        torch.testing.assert_close(found, expected, atol=1e-5 * expected.abs().max().item(), rtol=1e-4)


@pytest.mark.parametrize("block", DESIGNS)
def test_unsupported_packs_and_frame_times_are_refused_in_one_line(block: str) -> None:
    spec = spec_of_block(labelled(LatentSpec(2, (3, 8, 8)), 4), block)
    network = built(spec, replace(SMALL, block=block, positions="sincos"))
    assert network.supports.packs == (block in ADAPTIVE)
    assert network.supports.frame_times == (block in (*ADAPTIVE, "adaln-cross-attention"))
    condition = condition_of(spec, torch.tensor([0, 1]))
    if not network.supports.packs:
        with pytest.raises(UserError, match=f"block '{block}' does not support samples of several sizes"):
            network.forward_pack([noise(2, 3, 8, 8), noise(2, 3, 8, 12)], torch.tensor([20.0, 700.0]), condition)
    if not network.supports.frame_times:
        with pytest.raises(UserError, match=f"block '{block}' does not support a time per frame"):
            network(noise(2, 2, 3, 8, 8), torch.rand(2, 3), condition)


@pytest.mark.parametrize("block", TEXT_BLOCKS)
def test_a_text_block_without_a_text_is_refused_in_one_line(block: str) -> None:
    with pytest.raises(UserError, match=f"^block '{block}' needs a text condition.*adaln-zero, .*in-context$"):
        DiT(replace(SMALL, block=block), labelled(LatentSpec(2, (8, 8)), 4))


def test_r_reaches_the_network_and_differs_in_the_output() -> None:
    network = built(labelled(LatentSpec(2, (8, 8)), 3, interval=True))
    x, t = noise(2, 2, 8, 8), torch.tensor([800.0, 500.0])
    outputs = [network(x, t, labels(0, 1), r) for r in (None, t, torch.tensor([800.0, 100.0]))]
    assert torch.equal(outputs[0], outputs[1])  # no interval is the interval of no length
    changed = (outputs[2] - outputs[0]).abs().flatten(1).amax(dim=1)
    assert changed[0] == 0
    assert changed[1] > 1e-2


def test_a_denoiser_gives_its_network_the_end_of_the_step() -> None:
    network = built(labelled(LatentSpec(2, (8, 8)), 3, interval=True))
    denoiser = Denoiser(network, RectifiedFlow(), "velocity", learned_variance=False)
    t, s = schedule_steps(denoiser.schedule, [0.8, 0.3])
    query, guidance = Query(noise(2, 2, 8, 8), t, s), ClassifierFreeGuidance(GuidanceConfig(2.0))
    (prediction,) = denoiser([guidance.expand(query, labels(0, 1))])
    times = (torch.full((2,), 800.0), torch.full((2,), 300.0))
    conditional, unconditional = (
        network(query.x_t, times[0], condition, times[1]) for condition in (labels(0, 1), labels(0, 1).null())
    )
    velocity = unconditional + 2 * (conditional - unconditional)
    guided = guidance.combine(query, prediction)
    # x_s = x_t - (t - s) u, the average velocity's step, is DDIM's
    moved = s.alpha * guided.x0 + s.sigma * guided.epsilon
    torch.testing.assert_close(moved, query.x_t - (0.8 - 0.3) * velocity, atol=1e-5, rtol=1e-4)


def text(lengths: tuple[int, ...], padded: int) -> Condition:
    return Condition({"text": text_entry(lengths, padded)})


TEXTS = NetworkSpec(LatentSpec(2, (8, 8)), (TextConfig(features=6),))


@pytest.mark.parametrize("block", DESIGNS)
def test_masked_text_tokens_do_not_depend_on_the_padding(block: str) -> None:
    network = built(TEXTS, replace(SMALL, block=block)).double()
    x, t = noise(3, 2, 8, 8).double(), torch.tensor([10.0, 400.0, 900.0]).double()

    def run(condition: Condition) -> tuple[Tensor, list[Tensor]]:
        network.zero_grad()
        entry = condition.entries["text"]
        output = network(x, t, condition.replace(text=replace(entry, value=entry.value.double())))
        output.square().sum().backward()
        return output.detach(), [p.grad.clone() for p in network.parameters() if p.grad is not None]

    short, long, null = (run(each) for each in (text((2, 5, 0), 16), text((2, 5, 0), 64), text((2, 5, 0), 5).null()))
    torch.testing.assert_close(short, long, atol=1e-8, rtol=1e-8)
    torch.testing.assert_close(short[0][2], null[0][2], atol=1e-8, rtol=1e-8)  # an empty text is the null token
    assert (short[0][0] - null[0][0]).abs().max() > 1e-3


@pytest.mark.parametrize("block", DESIGNS)
@pytest.mark.parametrize("present", [True, False])
def test_empty_and_absent_texts_have_finite_gradients_in_bfloat16(block: str, present: bool) -> None:
    network = built(TEXTS, replace(SMALL, block=block))
    condition = text((0, 0), 4)
    if not present:
        condition = condition.null()
    with torch.autocast("cpu", torch.bfloat16):
        output = network(noise(2, 2, 8, 8), torch.tensor([10.0, 400.0]), condition)
    output.float().square().mean().backward()
    assert output.isfinite().all()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in network.parameters())
    null = network.get_parameter("condition_embedding.text.null").grad
    assert null is not None
    assert null.any()


def test_a_structural_channel_condition_stays_under_guidance() -> None:
    spec = NetworkSpec(LatentSpec(2, (8, 8)), (LabelsConfig(classes=3), ChannelsConfig(channels=2)))
    network = built(spec)
    low = Entry(noise(2, 2, 8, 8, seed=8), torch.ones(2, dtype=torch.bool), guided=False)
    condition = labels(0, 2).replace(low=low)
    denoiser = Denoiser(network, RectifiedFlow(), "velocity", learned_variance=False)
    (step,) = schedule_steps(denoiser.schedule, [0.5])
    query, guidance = Query(noise(2, 2, 8, 8), step, DATA), ClassifierFreeGuidance(GuidanceConfig(3.0))
    rows = guidance.expand(query, condition)
    assert torch.equal(rows.condition.entries["low"].value, torch.cat([low.value, low.value]))
    assert rows.condition.entries["low"].present.all()
    assert rows.condition.entries["labels"].present.tolist() == [True, True, False, False]
    guided = guidance.combine(query, denoiser([rows])[0])
    conditional, unconditional = (denoiser.predict(query.x_t, step, each) for each in (condition, condition.null()))
    expected = unconditional.epsilon + 3 * (conditional.epsilon - unconditional.epsilon)
    torch.testing.assert_close(guided.epsilon, expected, atol=1e-5, rtol=1e-4)
    other = condition.replace(low=replace(low, value=low.value.flip(0)))
    assert (denoiser.predict(query.x_t, step, other).x0 - conditional.x0).abs().max() > 1e-3


@pytest.mark.parametrize("block", DESIGNS)
@pytest.mark.parametrize("positions", ["sincos", "rotary"])
def test_a_network_built_for_one_size_runs_at_another(block: str, positions: str) -> None:
    config = replace(SMALL, block=block, positions=positions)
    specs = [spec_of_block(labelled(LatentSpec(2, size), 3), block) for size in ((32, 32), (24, 40))]
    square, wide = (built(spec, config) for spec in specs)
    x, t, condition = noise(2, 2, 24, 40), torch.tensor([17.0, 500.0]), condition_of(specs[0], torch.tensor([0, 2]))
    assert torch.equal(square(x, t, condition), wide(x, t, condition))
    with pytest.raises(UserError, match=r"25x40.*patch 2"):
        square(noise(1, 2, 25, 40), t[:1], condition.select(slice(0, 1)))


def test_layouts_are_kept_and_serve_training_after_inference() -> None:
    network = built(labelled(LatentSpec(2, (8, 8)), 3))
    with torch.inference_mode():
        network(noise(1, 2, 8, 12), torch.tensor([5.0]), labels(0))
    kept = [id(tensor) for tensor in network.layouts.tensors()]
    network(noise(1, 2, 8, 12), torch.tensor([5.0]), labels(0)).sum().backward()
    assert [id(tensor) for tensor in network.layouts.tensors()] == kept


# Texts always come with a mask, other designs with context tokens may; the others have no context.
COMPILED = [
    *((name, True) for name in TEXT_BLOCKS),
    *((name, False) for name in ADAPTIVE),
    *((name, masked) for name in ("cross-attention", "in-context") for masked in (False, True)),
]


@pytest.mark.parametrize(("block", "masked"), COMPILED)
def test_blocks_compile_to_one_graph(block: str, masked: bool) -> None:
    torch._dynamo.reset()
    adaptive = BLOCKS[block].adaptive
    config = replace(SMALL, block=block, modulation_rank=4 if adaptive else 0, qk_norm=adaptive)
    x, c, rope = noise(2, 6, 32), noise(2, 1, 32, seed=2), noise(2, 6, 8, seed=3)
    mask = torch.tensor([[True, True, False], [True, True, True]]) if masked else None
    for index in (0, 1) if block == "joint" else (0,):  # whose last block is another
        module = config.build(index, 2)
        context = Context(noise(2, 3, 32, seed=4), mask) if module.text or not adaptive else None
        if module.appends:
            rope = noise(2, 9, 8, seed=3)
        shared = noise(2, 1, BLOCKS[block].vectors * 32, seed=5) if adaptive else None
        inputs = (x, context, c if adaptive else None, Layout(torch.zeros(6, 32), rope), shared)
        compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
        for found, expected in zip(compiled(*inputs), module(*inputs), strict=True):
            torch.testing.assert_close(found, expected)


def test_known_frames_have_time_0_and_never_divide_by_sigma() -> None:
    known, clip = torch.tensor([[True, False, False]]), noise(1, 2, 3, 4, 4)
    step = frame_step(RectifiedFlow(), 0.5, known, clip)
    assert isinstance(step.alpha, Tensor)
    assert isinstance(step.sigma, Tensor)
    assert step.alpha.shape == step.sigma.shape == (1, 1, 3, 1, 1)
    assert step.alpha.flatten().tolist() == [1.0, 0.5, 0.5]
    assert step.sigma.flatten().tolist() == [0.0, 0.5, 0.5]
    assert isinstance(step.network_time, Tensor)
    assert step.network_time.tolist() == [[0.0, 500.0, 500.0]]
    network = built(labelled(LatentSpec(2, (3, 4, 4)), 3), replace(SMALL, positions="sincos"))
    for target in ("x0", "v", "velocity"):
        denoiser = Denoiser(network, RectifiedFlow(), target, learned_variance=False)
        prediction = denoiser.predict(clip, step, labels(1))
        assert prediction.x0.isfinite().all()
        assert prediction.epsilon.isfinite().all()
