"""The whole network: shapes, gradients, initialisation, precision, and what it refuses."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from specs import TEXT_BLOCKS, condition_of_classes, image_spec, spec_of_block
from torch import Tensor, nn

from ditlab.errors import UserError
from ditlab.models import NULL, Condition, DiT, DiTConfig, NetworkSpec
from ditlab.models.blocks import BLOCKS as REGISTRY
from ditlab.models.blocks import Context
from ditlab.models.layout import Layout

BLOCKS = tuple(REGISTRY)
SMALL = DiTConfig(depth=2, width=24, heads=3, patch=2)
SHAPES = {
    "rectangle": image_spec(3, 8, 12, classes=5, learned_variance=True),
    "one channel": image_spec(1, 8, 8, classes=10),
    "seven channels": image_spec(7, 4, 6, classes=2),
    "unconditional": image_spec(4, 8, 8, classes=0),
    "no null class": image_spec(4, 8, 4, classes=3, null=False),
}


def built(config: DiTConfig, shape: NetworkSpec, std: float = 0.1) -> DiT:
    """A network with no weight at zero, those included that training starts from zero."""
    network, generator = DiT(config, shape), torch.Generator().manual_seed(3)
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=std, generator=generator)
    return network


def batch(shape: NetworkSpec, n: int = 4) -> tuple[Tensor, Tensor, Condition]:
    generator = torch.Generator().manual_seed(4)
    x = torch.randn(n, shape.latent.channels, shape.latent.size[0], shape.latent.size[1], generator=generator)
    return x, torch.tensor([0.0, 17.0, 500.5, 999.0])[:n], condition_of_classes(shape, n)


@pytest.mark.parametrize("block", BLOCKS)
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES.keys())
def test_every_parameter_gets_a_finite_gradient(block: str, shape: NetworkSpec) -> None:
    shape = spec_of_block(shape, block)
    network = built(replace(SMALL, block=block), shape)
    output = network(*batch(shape))
    channels = shape.latent.channels * (2 if shape.learned_variance else 1)
    assert output.shape == (4, channels, shape.latent.size[0], shape.latent.size[1])
    output.square().sum().backward()
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.any(), name


@pytest.mark.parametrize("block", BLOCKS)
def test_time_and_label_change_the_output_of_their_own_sample_only(block: str) -> None:
    shape = spec_of_block(image_spec(3, 8, 12, classes=5), block)
    network = built(replace(SMALL, block=block), shape, std=0.3).eval()
    x, t, condition = batch(shape)
    before = network(x, t, condition)
    labels, times = condition.entries["labels"].value.clone(), t.clone()
    labels[1], times[2] = NULL, 3.0
    changed_labels = condition.replace(**Condition.of_labels(labels).entries)
    changed = (network(x, times, changed_labels) - before).abs().flatten(1).amax(dim=1)
    assert (changed[[1, 2]] > 1e-3).all()
    assert (changed[[0, 3]] < 1e-5).all()


@pytest.mark.parametrize("block", BLOCKS)
def test_a_batch_is_its_samples(block: str) -> None:
    shape = spec_of_block(image_spec(3, 8, 12, classes=5), block)
    network = built(replace(SMALL, block=block), shape)
    x, t, condition = batch(shape)
    alone = [network(x[k : k + 1], t[k : k + 1], condition.select(slice(k, k + 1))) for k in range(4)]
    torch.testing.assert_close(network(x, t, condition), torch.cat(alone), atol=1e-5, rtol=1e-5)


def test_a_rectangle_is_seen_by_rows_and_columns() -> None:
    """The transposed image is another image: positions tell rows from columns, and pixels come back where they were."""
    network = built(SMALL, image_spec(2, 4, 12, classes=3))
    x, t, condition = batch(network.spec)
    tokens_seen: list[Tensor] = []
    network.final_layer.linear.register_forward_pre_hook(lambda _, inputs: tokens_seen.append(inputs[0]))
    output = network(x, t, condition)
    assert tokens_seen[0].shape == (4, 2 * 6, 24)
    patches = network.final_layer.linear(tokens_seen[0])  # (N, T, 2 * 2 * 2)
    row, column = 1, 4
    patch = patches[:, row * 6 + column].view(4, 2, 2, 2)  # row, column, channel within the patch
    assert torch.equal(output[:, :, 2 * row : 2 * row + 2, 2 * column : 2 * column + 2], patch.permute(0, 3, 1, 2))


def test_in_context_attends_over_two_more_tokens_the_time_and_the_label() -> None:
    network = built(replace(SMALL, block="in-context"), image_spec(4, 8, 8, classes=3))
    x, t, condition = batch(network.spec)
    seen: list[Any] = []
    network.blocks[0].register_forward_pre_hook(lambda _, inputs: seen.append(inputs))
    network.blocks[0].get_submodule("attention").register_forward_pre_hook(lambda _, inputs: seen.append(inputs))
    network.final_layer.register_forward_pre_hook(lambda _, inputs: seen.append(inputs))
    network(x, t, condition)
    (tokens, context, *_), (attended, *_), (last, *_) = seen
    assert (tokens.shape[1], attended.shape[1], last.shape[1]) == (16, 16 + 2, 16)
    torch.testing.assert_close(context.tokens[:, 0], network.timestep_embedding(t)[:, 0])
    label = network.condition_embedding["labels"](condition.entries["labels"])
    torch.testing.assert_close(context.tokens[:, 1], label)


@pytest.mark.parametrize("block", BLOCKS)
def test_a_new_network_predicts_zero(block: str) -> None:
    shape = spec_of_block(image_spec(3, 8, 12, classes=5, learned_variance=True), block)
    network = DiT(replace(SMALL, block=block), shape).initialise(torch.Generator().manual_seed(0))
    assert not network(*batch(shape)).any()


@pytest.mark.parametrize("block", ["adaln-zero", *TEXT_BLOCKS])
@pytest.mark.parametrize("shared", [False, True])
def test_a_new_adaln_zero_block_is_the_identity(block: str, shared: bool) -> None:
    config = replace(SMALL, block=block, shared_modulation=shared)
    network = DiT(config, spec_of_block(image_spec(4, 8, 8, classes=3), block))
    for parameter in network.parameters():
        nn.init.constant_(parameter, 7.0)
    network.initialise(torch.Generator().manual_seed(0))
    x, c, text = torch.randn(2, 16, 24), torch.randn(2, 1, 24), torch.randn(2, 3, 24)
    modulation = None if network.shared_modulation is None else network.shared_modulation(c)
    for each in network.blocks:
        context = Context(text, torch.tensor([[True, True, False], [True, False, False]])) if each.text else None
        after, changed = each(x, context, c, Layout(torch.zeros(16, 24)), modulation)
        assert torch.equal(after, x)
        assert changed is None or torch.equal(changed.tokens, text)


@pytest.mark.parametrize("block", BLOCKS)
def test_initial_weights_are_distributed_as_the_paper_says(block: str) -> None:
    shape = spec_of_block(image_spec(4, 8, 8, classes=100, learned_variance=True), block, features=96)
    config = DiTConfig(depth=2, width=128, heads=4, block=block)
    network = DiT(config, shape)
    for parameter in network.parameters():
        nn.init.constant_(parameter, 7.0)  # whatever stood there must be gone, but for the norms' own weights
    network.initialise(torch.Generator().manual_seed(0))
    small = {"timestep_embedding.mlp.0", "timestep_embedding.mlp.2", "condition_embedding.labels.table"}
    zero = {"final_layer.linear"}
    if block == "adaln-cross-attention":
        zero |= {f"blocks.{index}.cross_attention.projection" for index in (0, 1)}
    kinds = set()
    for name, module in network.named_modules():
        if not isinstance(module, nn.Linear | nn.Embedding):
            continue
        weight = module.weight.detach()
        if isinstance(module, nn.Linear):
            assert not module.bias.any(), name
        if name in small:
            kinds.add("small")
            assert weight.std().item() == pytest.approx(0.02, rel=0.04), name
            assert weight.abs().max() > 0.05, name  # normal, not uniform
        elif name.endswith("modulation") or name in zero:
            kinds.add("zero")
            assert not weight.any(), name
        else:
            kinds.add("xavier")
            bound = math.sqrt(6 / (weight.shape[0] + weight.shape[1]))
            assert 0.98 * bound < weight.abs().max() <= bound, name
            assert weight.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.03), name
    assert kinds == {"small", "zero", "xavier"}


def test_initial_weights_depend_on_the_generator_alone() -> None:
    shape = image_spec(4, 8, 8, classes=3)

    def weights(seed: int) -> Tensor:
        network = DiT(SMALL, shape).initialise(torch.Generator().manual_seed(seed))
        return torch.cat([parameter.detach().flatten() for parameter in network.parameters()])

    torch.manual_seed(1)
    first = weights(5)
    torch.manual_seed(2)
    assert torch.equal(weights(5), first)
    assert not torch.equal(weights(6), first)


@pytest.mark.parametrize("block", BLOCKS)
def test_bf16_autocast_stays_close_to_fp32(block: str) -> None:
    shape = spec_of_block(image_spec(3, 8, 12, classes=5), block)
    network = built(replace(SMALL, block=block), shape)
    full = network(*batch(shape))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        half = network(*batch(shape))
    assert half.dtype == torch.bfloat16
    half.float().square().mean().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in network.parameters())
    error = (half.float() - full).square().mean().sqrt() / full.square().mean().sqrt()
    assert 0 < error < 0.02


def test_weights_alone_restore_a_network() -> None:
    shape = SHAPES["rectangle"]
    network, other = built(SMALL, shape), DiT(SMALL, shape)
    other.load_state_dict(network.state_dict())
    assert torch.equal(other(*batch(shape)), network(*batch(shape)))
    assert not any("positions" in name or "frequencies" in name for name in network.state_dict())


@pytest.mark.parametrize(
    ("config", "shape", "words"),
    [
        ({"patch": 4}, (10, 8), ["10x8", "patch 4", "nearest sizes for 10: 8 or 12"]),
        ({"patch": 8}, (8, 4), ["8x4", "patch 8", "nearest sizes for 4: 8"]),
        ({"heads": 5}, (8, 8), ["width 24", "5 heads"]),
        ({"width": 18, "heads": 3}, (8, 8), ["width 18", "4"]),
        ({"block": "adaln-one"}, (8, 8), ["'adaln-one'", "'adaln"]),
        ({"depth": 0}, (8, 8), ["depth=0", "at least 1"]),
        ({"heads": 0}, (8, 8), ["heads=0", "at least 1"]),
    ],
)
def test_impossible_networks_are_refused_in_one_line(
    config: dict[str, object], shape: tuple[int, int], words: list[str]
) -> None:
    with pytest.raises(UserError) as caught:
        DiT(replace(SMALL, **config), image_spec(4, *shape, classes=3))  # type: ignore[arg-type]
    message = str(caught.value)
    assert "\n" not in message
    for word in words:
        assert word in message
