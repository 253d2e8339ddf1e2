"""The U-Net: published counts, blocks computed directly, gradients, initialisation, precision, and what it refuses."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch._dynamo
import torch.nn.functional as F
from specs import class_count, image_spec
from torch import Tensor, nn

from ditlab.errors import UserError
from ditlab.models import NULL, UNETS, Condition, DiTConfig, NetworkSpec, UNet, UNetConfig, cost, matched, named
from ditlab.models.unet_blocks import (
    AttentionBlock,
    Resample,
    Resampling,
    ResidualBlock,
    SpatialTransformer,
    group_norm,
)

ADM = UNetConfig(width=8, multipliers=(1.0, 2.0), blocks=1, attention=(2,), head_width=4)
LDM = replace(ADM, heads=2, design="ldm")
DESIGNS = pytest.mark.parametrize("config", [ADM, LDM], ids=["adm", "ldm"])
SHAPES = {
    "rectangle": image_spec(3, 8, 12, classes=5, learned_variance=True),
    "one channel": image_spec(1, 8, 8, classes=10),
    "seven channels": image_spec(7, 4, 6, classes=2),
    "unconditional": image_spec(4, 8, 8, classes=0),
    "no null class": image_spec(4, 8, 4, classes=3, null=False),
}
RECTANGLE = SHAPES["rectangle"]


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def moved(module: nn.Module, std: float = 0.1) -> Any:
    """A module none of whose weights is where it began, those included that training starts from zero or one."""
    generator = seeded(3)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter += std * torch.randn(parameter.shape, generator=generator)
    return module


def built(config: UNetConfig, shape: NetworkSpec) -> UNet:
    return moved(UNet(config, shape).initialise(seeded()))


def batch(shape: NetworkSpec, n: int = 4) -> tuple[Tensor, Tensor, Condition]:
    x = torch.randn(n, shape.latent.channels, shape.latent.size[0], shape.latent.size[1], generator=seeded(4))
    labels = torch.arange(n) % class_count(shape) if class_count(shape) else torch.full((n,), NULL)
    return x, torch.tensor([0.0, 17.0, 500.5, 999.0])[:n], Condition.of_labels(labels)


# "Gflops" of the paper's appendix, which are GMACs, and millions of parameters of ADM's and LDM's papers.
PUBLISHED = [
    ("ADM-128", image_spec(3, 128, 128, 1000, True), 307, 422),
    ("ADM-256", image_spec(3, 256, 256, 1000, True), 1120, 554),
    ("ADM-512", image_spec(3, 512, 512, 1000, True), 1983, 559),
    ("LDM-4", image_spec(3, 64, 64, 1000), 103.6, 400),
]


@pytest.mark.parametrize(("name", "shape", "gmacs", "millions"), PUBLISHED)
def test_published_unets_count_as_published(name: str, shape: NetworkSpec, gmacs: float, millions: int) -> None:
    counted = cost(UNetConfig.named(name), shape)
    assert counted.gmacs == pytest.approx(gmacs, rel=0.001 if name.startswith("ADM") else 0.01)
    if name.startswith("ADM"):
        assert round(counted.total_parameters / 1e6) == millions
    else:
        assert counted.total_parameters / 1e6 == pytest.approx(millions, rel=0.01)


@pytest.mark.parametrize(
    ("name", "heads"), [("ADM-128", [4]), ("ADM-256", [8, 16]), ("ADM-512", [8, 16]), ("LDM-4", [1])]
)
def test_published_unets_have_the_heads_of_their_configurations(name: str, heads: list[int]) -> None:
    shape = next(shape for known, shape, *_ in PUBLISHED if known == name)
    with torch.device("meta"):
        network = UNet(UNetConfig.named(name), shape)
    found = {m.attention.heads for m in network.modules() if isinstance(m, AttentionBlock | SpatialTransformer)}
    assert sorted(found) == heads


@DESIGNS
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES.keys())
def test_every_parameter_of_a_unet_gets_a_finite_gradient(config: UNetConfig, shape: NetworkSpec) -> None:
    network = built(config, shape)
    output = network(*batch(shape))
    assert output.shape == (
        4,
        shape.latent.channels * (2 if shape.learned_variance else 1),
        shape.latent.size[0],
        shape.latent.size[1],
    )
    output.square().sum().backward()
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        # To one token every pixel attends fully, whatever queries, keys and the norm before the queries are: rounding is left.
        idle = any(part in name for part in ("cross_attention.query", "cross_attention.key", "norm_cross"))
        largest = parameter.grad.abs().max()
        assert largest < 1e-4 if idle else largest > 1e-3, name


@DESIGNS
def test_counts_are_those_of_the_built_unet(config: UNetConfig) -> None:
    counted, network = cost(config, RECTANGLE), UNet(config, RECTANGLE)
    assert counted.total_parameters == sum(parameter.numel() for parameter in network.parameters())
    assert counted.macs.keys() == counted.parameters.keys()
    assert counted.tokens == 0


def test_multiply_accumulates_of_a_small_unet_are_those_of_paper_and_pencil() -> None:
    a, b, e = 8, 16, 32  # channels of the levels, width of the condition
    fine, coarse = 8 * 12, 4 * 6  # pixels

    def residual(channels: int, out: int, pixels: int) -> int:
        shortcut = channels * out * pixels if channels != out else 0
        return pixels * 9 * (channels * out + out * out) + shortcut + e * 2 * out

    attention = coarse * 4 * b * b + 2 * coarse**2 * b
    down = residual(a, a, fine) + residual(a, a, coarse) + residual(a, b, coarse)
    up = residual(b + b, b, coarse) + residual(b + a, b, coarse) + residual(b, b, fine)
    up += residual(b + a, a, fine) + residual(a + a, a, fine)
    assert cost(ADM, RECTANGLE).macs == {
        "first layer": fine * 9 * 3 * a,
        "timestep embedding": a * e + e * e,
        "labels embedding": 0,
        "down: convolutions": down,
        "down: attention": attention,
        "middle: convolutions": 2 * residual(b, b, coarse),
        "middle: attention": attention,
        "up: convolutions": up,
        "up: attention": 2 * attention,
        "last layer": fine * 9 * a * 6,
    }


def normed(x: Tensor, norm: nn.GroupNorm) -> Tensor:
    """Group norm written out in float64."""
    groups = x.double().reshape(len(x), norm.num_groups, -1)
    mean, variance = groups.mean(2, keepdim=True), groups.var(2, unbiased=False, keepdim=True)
    y = ((groups - mean) / (variance + norm.eps).sqrt()).reshape(x.shape)
    return y * norm.weight.double()[:, None, None] + norm.bias.double()[:, None, None]


def convolved(x: Tensor, layer: nn.Conv2d, stride: int = 1) -> Tensor:
    """A convolution of 3x3 as sums of shifted images, or of 1x1, in float64."""
    weight, size, (height, width) = layer.weight.double(), layer.kernel_size[0], x.shape[2:]
    padded = F.pad(x.double(), [size // 2] * 4)
    total = torch.zeros(len(x), weight.shape[0], height, width, dtype=torch.float64)
    for row in range(size):
        for column in range(size):
            shifted = padded[:, :, row : row + height, column : column + width]
            total += torch.einsum("nchw,oc->nohw", shifted, weight[:, :, row, column])
    assert layer.bias is not None
    return (total + layer.bias.double()[:, None, None])[:, :, ::stride, ::stride]


def halved(x: Tensor) -> Tensor:
    return (x[:, :, ::2, ::2] + x[:, :, 1::2, ::2] + x[:, :, ::2, 1::2] + x[:, :, 1::2, 1::2]) / 4


def doubled(x: Tensor) -> Tensor:
    return torch.stack([torch.stack([x, x], dim=4).flatten(3)] * 2, dim=3).flatten(2, 3)


def silu(x: Tensor) -> Tensor:
    return x / (1 + (-x).exp())


def linear(x: Tensor, layer: nn.Linear) -> Tensor:
    return x.double() @ layer.weight.double().T + (0 if layer.bias is None else layer.bias.double())


@pytest.mark.parametrize("scale_shift", [True, False])
@pytest.mark.parametrize("resample", ["same", "down", "up"])
@pytest.mark.parametrize("out", [16, 24])
def test_a_residual_block_is_what_it_is_by_hand(scale_shift: bool, resample: Resample, out: int) -> None:
    block: ResidualBlock = moved(ResidualBlock(16, out, 5, scale_shift, resample))
    x, c = torch.randn(2, 16, 6, 4, generator=seeded(1)), torch.randn(2, 5, generator=seeded(2))
    resize = {"same": lambda y: y, "down": halved, "up": doubled}[resample]
    h = convolved(resize(silu(normed(x, block.norm1))), block.convolution1)
    vectors = linear(c, block.modulation)[:, :, None, None]
    if scale_shift:
        h = normed(h, block.norm2) * (1 + vectors[:, :out]) + vectors[:, out:]
    else:
        h = normed(h + vectors, block.norm2)
    shortcut = resize(x.double())
    if out != 16:
        assert isinstance(block.shortcut, nn.Conv2d)
        shortcut = convolved(shortcut, block.shortcut)
    expected = shortcut + convolved(silu(h), block.convolution2)
    torch.testing.assert_close(block(x, c).double(), expected, atol=1e-5, rtol=1e-5)


def attended(q: Tensor, k: Tensor, v: Tensor, heads: int) -> Tensor:
    """Attention head by head, in float64."""
    width = q.shape[2] // heads
    found = []
    for head in range(heads):
        own = slice(head * width, (head + 1) * width)
        scores = q[:, :, own] @ k[:, :, own].transpose(1, 2) / math.sqrt(width)
        weights = scores.exp() / scores.exp().sum(2, keepdim=True)
        found.append(weights @ v[:, :, own])
    return torch.cat(found, dim=2)


def test_adms_attention_is_what_it_is_by_hand() -> None:
    block: AttentionBlock = moved(AttentionBlock(24, 3), std=0.5)
    x = torch.randn(2, 24, 4, 6, generator=seeded(1))
    tokens = normed(x, block.norm).flatten(2).transpose(1, 2)
    q, k, v = linear(tokens, block.attention.qkv).chunk(3, dim=2)
    out = linear(attended(q, k, v, 3), block.attention.projection)
    expected = x + out.transpose(1, 2).reshape(2, 24, 4, 6)
    torch.testing.assert_close(block(x, None).double(), expected, atol=1e-4, rtol=1e-4)


def test_ldms_transformer_is_what_it_is_by_hand() -> None:
    block: SpatialTransformer = moved(SpatialTransformer(24, 3))
    x, token = torch.randn(2, 24, 4, 6, generator=seeded(1)), torch.randn(2, 1, 512, generator=seeded(2))

    def layer_norm(y: Tensor, norm: nn.LayerNorm) -> Tensor:
        centred = y - y.mean(2, keepdim=True)
        scaled = centred / (centred.square().mean(2, keepdim=True) + 1e-5).sqrt()
        return scaled * norm.weight.double() + norm.bias.double()

    tokens = linear(normed(x, block.norm).flatten(2).transpose(1, 2), block.embedding)
    own, cross = block.attention, block.cross_attention
    y = layer_norm(tokens, block.norm1)
    tokens = tokens + linear(
        attended(linear(y, own.query), linear(y, own.key), linear(y, own.value), 3), own.projection
    )
    tokens = tokens + linear(linear(token, cross.value), cross.projection)  # of one token, all of it
    values, gates = linear(layer_norm(tokens, block.norm2), block.mlp_up).chunk(2, dim=2)
    gates = gates * (1 + torch.erf(gates / math.sqrt(2))) / 2
    tokens = linear(tokens + linear(values * gates, block.mlp_down), block.projection)
    expected = x + tokens.transpose(1, 2).reshape(2, 24, 4, 6)
    torch.testing.assert_close(block(x, token).double(), expected, atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("resample", ["down", "up"])
def test_ldms_resampling_is_a_convolution_of_stride_two_or_of_the_doubled_image(resample: Resample) -> None:
    layer: Resampling = moved(Resampling(8, resample))
    x = torch.randn(2, 8, 6, 4, generator=seeded(1))
    expected = convolved(x, layer.convolution, 2) if resample == "down" else convolved(doubled(x), layer.convolution)
    torch.testing.assert_close(layer(x, torch.empty(2, 1)).double(), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("channels", "groups"), [(256, 32), (960, 32), (192, 32), (128, 32), (64, 16), (24, 6), (20, 5), (36, 9), (3, 1)]
)
def test_norms_have_32_groups_but_none_of_under_four_channels(channels: int, groups: int) -> None:
    assert group_norm(channels).num_groups == groups


@DESIGNS
def test_a_new_unet_predicts_zero_and_its_blocks_begin_as_identities(config: UNetConfig) -> None:
    network = UNet(config, RECTANGLE).initialise(seeded())
    assert not network(*batch(RECTANGLE)).any()
    x, c, token = torch.randn(2, 16, 4, 6), torch.randn(2, 32), torch.randn(2, 1, 512)
    for block in network.middle:
        assert torch.equal(block(x, c, token), x)
    unresized = [m for m in network.modules() if isinstance(m, ResidualBlock) and m.resample == "same"]
    for residual in unresized:  # elsewhere the shortcut is all there is
        y = torch.randn(2, residual.convolution1.in_channels, 4, 6)
        torch.testing.assert_close(residual(y, c), residual.shortcut(y), atol=0, rtol=0)


@DESIGNS
def test_initial_weights_of_a_unet_are_distributed_as_published(config: UNetConfig) -> None:
    network = UNet(replace(config, width=64), image_spec(3, 8, 12, classes=200, learned_variance=True))
    for parameter in network.parameters():
        nn.init.constant_(parameter, 7.0)  # whatever stood there must be gone
    network.initialise(seeded())
    zero = [m.convolution2 for m in network.modules() if isinstance(m, ResidualBlock)]
    zero += [m.attention.projection for m in network.modules() if isinstance(m, AttentionBlock)]
    zero += [m.projection for m in network.modules() if isinstance(m, SpatialTransformer)]
    zero.append(network.last_layer)
    kinds = {"zero": 0, "uniform": 0, "norm": 0}
    for name, module in network.named_modules():
        if isinstance(module, nn.GroupNorm | nn.LayerNorm):
            kinds["norm"] += 1
            assert torch.equal(module.weight, torch.ones_like(module.weight)), name
            assert not module.bias.any(), name
        elif isinstance(module, nn.Conv2d | nn.Linear) and any(module is each for each in zero):
            kinds["zero"] += 1
            assert not module.weight.any(), name
            assert module.bias is not None
            assert not module.bias.any(), name
        elif isinstance(module, nn.Conv2d | nn.Linear):
            kinds["uniform"] += 1
            bound = 1 / math.sqrt(module.weight[0].numel())
            weight = module.weight.detach()
            assert 0.98 * bound < weight.abs().max() <= bound, name
            assert weight.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.05), name
            assert module.bias is None or 0.8 * bound < module.bias.abs().max() <= bound, name
    assert min(kinds.values()) > 5
    table = network.get_parameter("condition_embedding.labels.table.weight").detach()
    assert (table.mean().item(), table.std().item()) == pytest.approx((0, 1), abs=0.02)


def test_initial_weights_of_a_unet_depend_on_the_generator_alone() -> None:
    def weights(seed: int) -> Tensor:
        network = UNet(ADM, RECTANGLE).initialise(seeded(seed))
        return torch.cat([parameter.detach().flatten() for parameter in network.parameters()])

    torch.manual_seed(1)
    first = weights(5)
    torch.manual_seed(2)
    assert torch.equal(weights(5), first)
    assert not torch.equal(weights(6), first)


@DESIGNS
def test_time_and_label_change_a_unets_output_of_their_own_sample_only(config: UNetConfig) -> None:
    network = built(config, RECTANGLE).eval()
    x, t, condition = batch(RECTANGLE)
    before = network(x, t, condition)
    labels, times = condition.entries["labels"].value.clone(), t.clone()
    labels[1], times[2] = NULL, 3.0
    changed = (network(x, times, Condition.of_labels(labels)) - before).abs().flatten(1).amax(dim=1)
    assert (changed[[1, 2]] > 1e-3).all()
    assert (changed[[0, 3]] < 1e-5).all()


@DESIGNS
def test_a_unets_batch_is_its_samples(config: UNetConfig) -> None:
    network = built(config, RECTANGLE)
    x, t, condition = batch(RECTANGLE)
    alone = [network(x[k : k + 1], t[k : k + 1], condition.select(slice(k, k + 1))) for k in range(4)]
    torch.testing.assert_close(network(x, t, condition), torch.cat(alone), atol=1e-5, rtol=1e-5)


@DESIGNS
def test_a_unet_in_bf16_stays_close_to_fp32(config: UNetConfig) -> None:
    network = built(config, RECTANGLE)
    full = network(*batch(RECTANGLE))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        half = network(*batch(RECTANGLE))
    assert half.dtype == torch.bfloat16
    half.float().square().mean().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in network.parameters())
    error = (half.float() - full).square().mean().sqrt() / full.square().mean().sqrt()
    assert 0 < error < 0.03


@DESIGNS
def test_a_unet_that_computes_again_has_the_same_gradients(config: UNetConfig) -> None:
    network, inputs = built(config, RECTANGLE), batch(RECTANGLE)

    def gradients() -> Iterator[Tensor]:
        network.zero_grad()
        network(*inputs).square().sum().backward()
        return iter([p.grad.clone() for p in network.parameters() if p.grad is not None])

    kept = list(gradients())
    network.activation_checkpointing = True
    for found, expected in zip(gradients(), kept, strict=True):
        torch.testing.assert_close(found, expected)


@DESIGNS
def test_weights_alone_restore_a_unet(config: UNetConfig) -> None:
    network, other = built(config, RECTANGLE), UNet(config, RECTANGLE)
    other.load_state_dict(network.state_dict())
    assert torch.equal(other(*batch(RECTANGLE)), network(*batch(RECTANGLE)))


def test_every_block_of_a_unet_is_compiled_however_many_there_are() -> None:
    shape = image_spec(3, 16, 16, classes=5)
    network = built(UNetConfig(width=8, multipliers=(1.0, 2.0, 3.0), head_width=8), shape)
    expected = network(*batch(shape))
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    before = torch._dynamo.config.recompile_limit
    try:
        for block in network.block_list():
            block.compile(backend="eager", fullgraph=True)  # raises at a graph break and beyond the limit of graphs
        with torch.no_grad():
            torch.testing.assert_close(network(*batch(shape)), expected)
        assert torch._dynamo.utils.counters["stats"]["unique_graphs"] > 8  # the compiler's own limit
    finally:
        torch._dynamo.config.recompile_limit = before
        torch._dynamo.reset()


@pytest.mark.parametrize(
    ("config", "shape", "words"),
    [
        ({}, (9, 8), ["9x8", "divisible by 2", "2 levels", "nearest sizes for 9: 8 or 10"]),
        ({"multipliers": (1.0, 2.0, 2.0, 2.0)}, (8, 4), ["8x4", "divisible by 8", "nearest sizes for 4: 8"]),
        ({"width": 10}, (8, 8), ["width 10", "8 or 12"]),
        ({"width": 0}, (8, 8), ["width=0", "at least 1"]),
        ({"blocks": 0}, (8, 8), ["blocks=0", "at least 1"]),
        ({"multipliers": ()}, (8, 8), ["multipliers=()"]),
        ({"multipliers": (1.0, 1.1)}, (8, 8), ["multiplier 1.1", "width 8"]),
        ({"multipliers": (1.0, -2.0)}, (8, 8), ["multiplier -2.0"]),
        ({"multipliers": (1.0, math.nan)}, (8, 8), ["multiplier nan"]),
        ({"attention": (3,)}, (8, 8), ["3 times smaller", "1, 2"]),
        ({"heads": 5}, (8, 8), ["16 channels", "5 heads"]),
        ({"heads": -1}, (8, 8), ["heads=-1"]),
        ({"design": "amd"}, (8, 8), ["'amd'", "did you mean 'adm'?"]),
    ],
)
def test_impossible_unets_are_refused_in_one_line(
    config: dict[str, Any], shape: tuple[int, int], words: list[str]
) -> None:
    with pytest.raises(UserError) as caught:
        UNet(replace(ADM, **config), image_spec(4, *shape, classes=3))
    assert "\n" not in str(caught.value)
    for word in words:
        assert word in str(caught.value)


def test_networks_are_known_by_name_in_any_case() -> None:
    assert named("UNET") == named("unet") == UNetConfig()
    assert named("adm-256") == UNETS["ADM-256"]
    assert named("DiT-b/2") == DiTConfig.named("DiT-B/2")
    for name, nearest in (("unett", "'unet'"), ("ADM-265", "'ADM-256'"), ("DiT-B2", "'DiT-B/2'"), ("", "unet")):
        with pytest.raises(UserError, match="unknown model") as caught:
            named(name)
        assert nearest in str(caught.value)
    with pytest.raises(UserError, match="did you mean 'LDM-4'"):
        UNetConfig.named("LDM4")


@pytest.mark.parametrize(
    ("config", "shape"),
    [
        (DiTConfig(depth=4, width=64, heads=4), image_spec(1, 8, 8, 10)),
        (DiTConfig(depth=6, width=192, heads=6, patch=1), image_spec(4, 8, 8, 10)),
        (DiTConfig(depth=1, width=4, heads=1, patch=8), image_spec(1, 8, 8, 10)),
    ],
)
def test_the_matched_unet_is_nearer_in_compute_than_its_neighbours(config: DiTConfig, shape: NetworkSpec) -> None:
    found = matched(config, shape)
    wanted = cost(config, shape).gmacs
    off = abs(cost(found, shape).gmacs - wanted)
    assert replace(found, width=64) == UNetConfig()
    neighbours = [replace(found, width=found.width + step) for step in (-4, 4) if found.width + step > 0]
    assert all(abs(cost(each, shape).gmacs - wanted) >= off for each in neighbours)
    assert len(neighbours) == 2 or found.width == 4


def test_only_the_width_is_matched() -> None:
    like = UNetConfig(blocks=1, multipliers=(1.0, 2.0), attention=(2,))
    found = matched(DiTConfig(depth=4, width=64, heads=4), image_spec(1, 8, 8, 10), like)
    assert found != like
    assert replace(found, width=64) == like
