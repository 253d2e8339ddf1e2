"""What came after the paper: SwiGLU, root-mean-square norms, rotary positions, normed queries and keys, adaLN-LoRA."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from specs import TEXT_BLOCKS, condition_of, image_spec, spec_of_block
from torch import Tensor, nn

from ditlab.errors import UserError
from ditlab.models import Condition, DiT, DiTConfig, NetworkSpec, cost
from ditlab.models.attention import SelfAttention, rotate
from ditlab.models.blocks import MLP, AdaLNZeroBlock, BlockConfig
from ditlab.models.layout import rotary_positions

PAPER = DiTConfig(depth=2, width=48, heads=4, patch=2)
SHAPE = image_spec(3, 8, 12, classes=5)
ALL: dict[str, Any] = {"mlp": "swiglu", "norm": "rms", "positions": "rotary", "qk_norm": True}
LADDER = {
    "swiglu": replace(PAPER, mlp="swiglu"),
    "rms": replace(PAPER, norm="rms"),
    "rotary": replace(PAPER, positions="rotary"),
    "qk-norm": replace(PAPER, qk_norm=True),
    "lora": replace(PAPER, modulation_rank=2),
    "lora of adaln": replace(PAPER, modulation_rank=2, block="adaln"),
    "in-context": replace(PAPER, block="in-context", mlp="swiglu", norm="rms", positions="rotary", qk_norm=True),
    "cross": replace(PAPER, block="cross-attention", mlp="swiglu", norm="rms", positions="rotary", qk_norm=True),
    "all": replace(PAPER, mlp="swiglu", norm="rms", positions="rotary", qk_norm=True, modulation_rank=2),
    "single": replace(PAPER, shared_modulation=True),
    **{f"lora of {block}": replace(PAPER, block=block, modulation_rank=2, **ALL) for block in TEXT_BLOCKS},
    **{f"single of {block}": replace(PAPER, block=block, shared_modulation=True, **ALL) for block in TEXT_BLOCKS},
}


def built(config: DiTConfig, shape: NetworkSpec = SHAPE, std: float = 0.1) -> DiT:
    shape = spec_of_block(shape, config.block)
    network, generator = DiT(config, shape), torch.Generator().manual_seed(3)
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=std, generator=generator)
    return network


def batch(block: str = "adaln-zero", shape: NetworkSpec = SHAPE) -> tuple[Tensor, Tensor, Condition]:
    x = torch.randn(
        3, shape.latent.channels, shape.latent.size[0], shape.latent.size[1], generator=torch.Generator().manual_seed(4)
    )
    return x, torch.tensor([0.0, 500.5, 999.0]), condition_of(spec_of_block(shape, block), torch.tensor([0, 4, -1]))


@pytest.mark.parametrize("config", LADDER.values(), ids=LADDER.keys())
def test_every_parameter_learns_and_every_option_changes_the_network(config: DiTConfig) -> None:
    network = built(config)
    output = network(*batch(config.block))
    output.square().sum().backward()
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.any(), name
    assert not torch.allclose(output, built(replace(PAPER, block=config.block))(*batch(config.block)), atol=1e-3)


@pytest.mark.parametrize("config", LADDER.values(), ids=LADDER.keys())
def test_a_new_network_predicts_zero_and_its_recomputed_gradients_are_the_same(config: DiTConfig) -> None:
    network = DiT(config, spec_of_block(SHAPE, config.block)).initialise(torch.Generator().manual_seed(0))
    assert not network(*batch(config.block)).any()
    gradients = []
    for recompute in (False, True):
        network = built(config)
        network.activation_checkpointing = recompute
        network(*batch(config.block)).square().sum().backward()
        gradients.append([parameter.grad for parameter in network.parameters()])
    for plain, again in zip(*gradients, strict=True):
        assert torch.equal(plain, again)


@pytest.mark.parametrize("config", LADDER.values(), ids=LADDER.keys())
def test_bfloat16_is_near_float32(config: DiTConfig) -> None:
    network = built(config)
    with torch.no_grad():
        exact = network(*batch(config.block))
        with torch.autocast("cpu", torch.bfloat16):
            rounded = network(*batch(config.block)).float()
    assert (rounded - exact).norm() < 0.03 * exact.norm()


def test_swiglu_is_its_formula_and_costs_what_the_gelu_does() -> None:
    config = BlockConfig(width=48, heads=4, mlp="swiglu")
    mlp = MLP(config)
    x = torch.randn(2, 5, 48, dtype=torch.float64)
    up, down = mlp.double().requires_grad_(False).up, mlp.down
    gate, value = (x @ up.weight.T + up.bias).numpy().reshape(2, 5, 2, 128).transpose(2, 0, 1, 3)
    expected = (gate / (1 + np.exp(-gate)) * value) @ down.weight.T.numpy() + down.bias.numpy()
    np.testing.assert_allclose(mlp(x).numpy(), expected, atol=1e-12)
    shape = image_spec(4, 32, 32, classes=1000, learned_variance=True)
    large = DiTConfig.named("DiT-B/2")
    assert cost(replace(large, mlp="swiglu"), shape).gmacs == pytest.approx(cost(large, shape).gmacs, rel=0.002)


def test_the_root_mean_square_norm_neither_centres_nor_shifts() -> None:
    block = AdaLNZeroBlock(BlockConfig(width=48, heads=4, norm="rms"))
    x = torch.randn(2, 5, 48) + 3
    torch.testing.assert_close(block.norm(x), x / x.square().mean(-1, keepdim=True).sqrt(), atol=1e-5, rtol=1e-5)


def angles_of(place: int, width: int) -> np.ndarray:
    return place / 10000 ** (np.arange(width // 4) / (width // 4))


def test_rotary_positions_of_a_rectangle_turn_by_column_then_row() -> None:
    """Complex numbers, each times its own e^(i angle), are an independent way to turn pairs."""
    rows, columns, width = 3, 5, 16
    rope = rotary_positions(width, (rows, columns))
    x = torch.randn(2, 4, rows * columns, width)
    turned = rotate(x, rope).numpy()
    numbers = x.numpy()[..., :8] + 1j * x.numpy()[..., 8:]
    for row in range(rows):
        for column in range(columns):
            angle = np.concatenate([angles_of(column, width), angles_of(row, width)])
            expected = numbers[:, :, row * columns + column] * np.exp(1j * angle)
            found = turned[:, :, row * columns + column]
            np.testing.assert_allclose(found[..., :8] + 1j * found[..., 8:], expected, atol=1e-5)


def test_rotary_attention_sees_only_how_far_apart_patches_are() -> None:
    """On a rectangle: the score of two patches moved together by rows and columns stays, moved apart it does not."""
    rows, columns, width = 4, 6, 8
    rope = rotary_positions(width, (rows, columns)).double()
    q, k = torch.randn(2, width, dtype=torch.float64)
    turned_q = rotate(q.expand(1, 1, rows * columns, width), rope)[0, 0].view(rows, columns, width)
    turned_k = rotate(k.expand(1, 1, rows * columns, width), rope)[0, 0].view(rows, columns, width)
    score = turned_q[0, 0] @ turned_k[2, 1]
    for row, column in ((0, 0), (1, 0), (0, 4), (1, 4)):
        assert turned_q[row, column] @ turned_k[row + 2, column + 1] == pytest.approx(score.item(), abs=1e-6)
    assert turned_q[0, 0] @ turned_k[1, 2] != pytest.approx(score.item(), abs=1e-3)  # the axes are not one


def test_the_conditions_tokens_are_not_rotated() -> None:
    network = built(LADDER["in-context"])
    tokens = network.patching.to_tokens(torch.zeros(1, 3, 8, 12))
    rope = network.layouts(tokens, context=2).rope
    assert rope is not None
    assert rope.shape == (2, 4 * 6 + 2, 6)
    assert torch.equal(rope[0, -2:], torch.ones(2, 6))
    assert not rope[1, -2:].any()


def test_normed_queries_and_keys_do_not_grow_with_the_weights() -> None:
    attention = SelfAttention(32, 4, qk_norm=True)
    nn.init.zeros_(attention.qkv.bias)
    x = torch.randn(2, 7, 32)
    before = attention(x)
    with torch.no_grad():
        attention.qkv.weight[:64] *= 50  # queries and keys; values stay
    torch.testing.assert_close(attention(x), before, atol=1e-4, rtol=1e-4)


def test_adaln_lora_of_full_rank_is_adaln() -> None:
    """With nothing shared and the reduction the identity, the correction is the whole modulation."""
    full, low = built(PAPER), built(replace(PAPER, modulation_rank=48))
    state = full.state_dict()
    state |= {f"blocks.{k}.reduction.weight": torch.eye(48) for k in range(2)}
    state |= {"shared_modulation.weight": torch.zeros(288, 48), "shared_modulation.bias": torch.zeros(288)}
    low.load_state_dict(state)
    torch.testing.assert_close(low(*batch()), full(*batch()))


def test_adaln_lora_adds_its_correction_to_what_is_shared() -> None:
    network = built(LADDER["lora"])
    with torch.no_grad():
        for k in range(2):
            nn.init.zeros_(network.get_parameter(f"blocks.{k}.modulation.weight"))
            nn.init.zeros_(network.get_parameter(f"blocks.{k}.modulation.bias"))
    plain = built(PAPER)
    state = {
        name: tensor for name, tensor in network.state_dict().items() if "modulation" not in name or "final" in name
    }
    for k in range(2):
        for part in ("weight", "bias"):
            state[f"blocks.{k}.modulation.{part}"] = network.state_dict()[f"shared_modulation.{part}"]
    plain.load_state_dict({name: tensor for name, tensor in state.items() if "reduction" not in name})
    torch.testing.assert_close(network(*batch()), plain(*batch()))


def test_shared_modulation_adds_its_table_to_what_is_shared() -> None:
    """Modulation in each block, whose bias is the shared one plus the table; the final layer's is its own."""
    single, plain = built(LADDER["single"]), built(PAPER)
    state = {name: tensor for name, tensor in single.state_dict().items() if "modulation" not in name}
    for k in range(2):
        state[f"blocks.{k}.modulation.weight"] = single.state_dict()["shared_modulation.weight"]
        table = single.state_dict()[f"blocks.{k}.modulation.table"]
        state[f"blocks.{k}.modulation.bias"] = single.state_dict()["shared_modulation.bias"] + table
    state |= {
        f"final_layer.modulation.{kind}": plain.state_dict()[f"final_layer.modulation.{kind}"]
        for kind in ("weight", "bias")
    }
    plain.load_state_dict(state)
    assert single.final_layer.modulation is not None
    seen: list[Any] = []
    for network in (single, plain):
        network.final_layer.register_forward_pre_hook(lambda _, inputs: seen.append(inputs))
    output, _ = single(*batch()), plain(*batch())
    (x, c, _), (expected, *_) = seen
    torch.testing.assert_close(x, expected)
    table = single.final_layer.modulation.get_parameter("table").view(2, 48)
    tokens = nn.functional.layer_norm(x, (48,), eps=1e-6) * (1 + c + table[1]) + c + table[0]
    patches = single.patching.to_tokens(torch.zeros(3, 3, 8, 12))
    by_hand = single.patching.to_sample(replace(patches, x=single.final_layer.linear(tokens)))
    torch.testing.assert_close(output, by_hand)


def test_adaln_lora_of_rank_2_has_the_parameters_walt_says() -> None:
    """W.A.L.T's XL, of DiT-XL's depth and width with rank 2, has 460M parameters (its table)."""
    shape, large = image_spec(4, 32, 32, classes=1000, learned_variance=True), DiTConfig.named("DiT-XL/2")
    full, low = (cost(config, shape).total_parameters for config in (large, replace(large, modulation_rank=2)))
    width, depth = 1152, 28
    assert full - low == (depth - 1) * 6 * width * width - 6 * width - depth * (2 * width + 2 * 6 * width)
    assert round(low / 1e6) == 460
    parts = cost(replace(large, modulation_rank=2), shape).parameters
    assert parts["shared modulation"] == 6 * width * (width + 1)
    assert sum(parts.values()) == low
    assert "blocks: norms" not in parts


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"heads": 24, "positions": "rotary"}, "heads of a width divisible by 4, not 2"),
        ({"modulation_rank": 49}, "from 0, off, to the width 48"),
        ({"modulation_rank": -1}, "from 0, off, to the width 48"),
        ({"modulation_rank": 2, "block": "in-context"}, "'in-context' has no modulation"),
        ({"shared_modulation": True, "block": "cross-attention"}, "'cross-attention' has no modulation"),
        ({"shared_modulation": True, "modulation_rank": 2}, "two corrections of one modulation; choose one"),
    ],
)
def test_what_does_not_go_together_is_one_line(changes: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        DiT(replace(PAPER, **changes), SHAPE)  # type: ignore[arg-type]


@pytest.mark.parametrize("normed", [False, True])
@pytest.mark.parametrize("turned", [False, True])
def test_the_weights_of_attention_are_those_it_attends_with(normed: bool, turned: bool):
    attention = SelfAttention(24, 3, normed)
    generator = torch.Generator().manual_seed(2)
    for parameter in attention.parameters():
        nn.init.normal_(parameter, std=0.5, generator=generator)
    x = torch.randn(2, 6, 24, generator=generator)
    rope = rotary_positions(8, (2, 3)) if turned else None
    weights = attention.weights(x, rope)  # (N, heads, T, T)
    torch.testing.assert_close(weights.sum(dim=-1), torch.ones(2, 3, 6))
    value = attention.qkv(x).view(2, 6, 3, 3, 8)[:, :, 2].transpose(1, 2)  # (N, heads, T, d)
    by_hand = attention.projection((weights @ value).transpose(1, 2).reshape(2, 6, 24))
    torch.testing.assert_close(attention(x, rope), by_hand, rtol=1e-4, atol=1e-5)
