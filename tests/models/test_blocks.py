"""The blocks against torch's own transformer layers, with the same weights."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ditlab.models.attention import CrossAttention, SelfAttention
from ditlab.models.blocks import (
    MLP,
    AdaLNBlock,
    AdaLNZeroBlock,
    Block,
    BlockConfig,
    Context,
    CrossAttentionBlock,
    FinalLayer,
    InContextBlock,
)
from ditlab.models.layout import Layout

WIDTH, HEADS = 24, 3
CONFIG = BlockConfig(width=WIDTH, heads=HEADS)

LAYOUT = Layout(torch.zeros(7, WIDTH))


def randomise(module: nn.Module) -> None:
    generator = torch.Generator().manual_seed(2)
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.3, generator=generator)


def tokens(n: int, t: int, seed: int) -> Tensor:
    return torch.randn(n, t, WIDTH, generator=torch.Generator().manual_seed(seed))


def apply(block: Block, x: Tensor, context: Tensor | None = None, c: Tensor | None = None) -> Tensor:
    """The tokens that a block gives, of a context (N, S, D) or a modulation input (N, G, D)."""
    return block(x, None if context is None else Context(context), c, LAYOUT)[0]


def linear_of(block: AdaLNBlock | AdaLNZeroBlock) -> nn.Linear:
    """The modulation of a block that shares none."""
    assert isinstance(block.modulation, nn.Linear)
    return block.modulation


def gelu(x: Tensor) -> Tensor:
    """The tanh approximation, written out (Hendrycks and Gimpel 2016)."""
    return 0.5 * x * (1 + torch.tanh((2 / torch.pi) ** 0.5 * (x + 0.044715 * x**3)))


def fill(theirs: nn.MultiheadAttention, ours: SelfAttention | CrossAttention) -> None:
    weights = [ours.qkv] if isinstance(ours, SelfAttention) else [ours.query, ours.key_value]
    state = {
        "in_proj_weight": torch.cat([linear.weight for linear in weights]),
        "in_proj_bias": torch.cat([linear.bias for linear in weights]),
        "out_proj.weight": ours.projection.weight,
        "out_proj.bias": ours.projection.bias,
    }
    theirs.load_state_dict(state)


def encoder_layer(attention: SelfAttention, mlp: MLP, norms: list[nn.Module]) -> nn.TransformerEncoderLayer:
    layer = nn.TransformerEncoderLayer(
        WIDTH, HEADS, 4 * WIDTH, 0.0, gelu, layer_norm_eps=1e-6, batch_first=True, norm_first=True
    )
    fill(layer.self_attn, attention)
    layer.linear1.load_state_dict(mlp.up.state_dict())
    layer.linear2.load_state_dict(mlp.down.state_dict())
    for theirs, ours in zip((layer.norm1, layer.norm2), norms, strict=False):
        theirs.load_state_dict(ours.state_dict())
    return layer


def test_the_in_context_block_is_torchs_encoder_layer() -> None:
    block = InContextBlock(CONFIG)
    randomise(block)
    layer = encoder_layer(block.attention, block.mlp, [block.norm1, block.norm2])
    x, context = tokens(2, 7, 0), tokens(2, 2, 1)
    expected = layer(torch.cat([x, context], dim=1))[:, :7]
    torch.testing.assert_close(apply(block, x, context=context), expected, atol=2e-5, rtol=1e-5)


def test_the_cross_attention_block_is_torchs_decoder_layer() -> None:
    block = CrossAttentionBlock(CONFIG)
    randomise(block)
    layer = nn.TransformerDecoderLayer(
        WIDTH, HEADS, 4 * WIDTH, 0.0, gelu, layer_norm_eps=1e-6, batch_first=True, norm_first=True
    )
    fill(layer.self_attn, block.attention)
    fill(layer.multihead_attn, block.cross_attention)
    pairs = [
        (layer.linear1, block.mlp.up), (layer.linear2, block.mlp.down),
        (layer.norm1, block.norm1), (layer.norm2, block.norm_cross), (layer.norm3, block.norm2),
    ]  # fmt: skip
    for theirs, ours in pairs:
        theirs.load_state_dict(ours.state_dict())
    x, context = tokens(2, 7, 0), tokens(2, 2, 1)
    torch.testing.assert_close(apply(block, x, context=context), layer(x, context), atol=2e-5, rtol=1e-5)


def test_an_adaln_block_with_nothing_modulated_is_torchs_encoder_layer() -> None:
    block = AdaLNBlock(CONFIG)
    randomise(block)
    nn.init.zeros_(linear_of(block).weight)
    nn.init.zeros_(linear_of(block).bias)
    layer = encoder_layer(block.attention, block.mlp, [])
    x = tokens(2, 7, 0)
    torch.testing.assert_close(apply(block, x, c=tokens(2, 1, 1)), layer(x), atol=2e-5, rtol=1e-5)


def test_an_adaln_block_shifts_and_scales_before_attention_then_before_the_mlp() -> None:
    block = AdaLNBlock(CONFIG)
    randomise(block)
    x, c = tokens(2, 7, 0), tokens(2, 1, 1)
    vectors = F.linear(F.silu(c[:, 0]), linear_of(block).weight, linear_of(block).bias)
    shift1, scale1, shift2, scale2 = (vectors[:, None, i * WIDTH : (i + 1) * WIDTH] for i in range(4))
    attended = x + block.attention(nn.LayerNorm(WIDTH, eps=1e-6)(x) * (1 + scale1) + shift1)
    expected = attended + block.mlp(nn.LayerNorm(WIDTH, eps=1e-6)(attended) * (1 + scale2) + shift2)
    torch.testing.assert_close(apply(block, x, c=c), expected, atol=2e-5, rtol=1e-5)


def test_an_adaln_zero_block_with_open_gates_is_an_adaln_block() -> None:
    zero, plain = AdaLNZeroBlock(CONFIG), AdaLNBlock(CONFIG)
    randomise(plain)
    zero.attention.load_state_dict(plain.attention.state_dict())
    zero.mlp.load_state_dict(plain.mlp.state_dict())
    with torch.no_grad():
        weight, bias = linear_of(zero).weight.view(6, WIDTH, WIDTH), linear_of(zero).bias.view(6, WIDTH)
        for ours, theirs in enumerate([0, 1, None, 2, 3, None]):  # shift, scale, gate; twice
            if theirs is None:
                weight[ours], bias[ours] = 0, 1
            else:
                weight[ours] = linear_of(plain).weight.view(4, WIDTH, WIDTH)[theirs]
                bias[ours] = linear_of(plain).bias.view(4, WIDTH)[theirs]
    x, c = tokens(2, 7, 0), tokens(2, 1, 1)
    torch.testing.assert_close(apply(zero, x, c=c), apply(plain, x, c=c), atol=1e-5, rtol=1e-5)


def test_closed_gates_leave_tokens_as_they_are() -> None:
    block = AdaLNZeroBlock(CONFIG)
    randomise(block)
    with torch.no_grad():
        for gate in (2, 5):
            linear_of(block).weight.view(6, WIDTH, WIDTH)[gate] = 0
            linear_of(block).bias.view(6, WIDTH)[gate] = 0
    x = tokens(2, 7, 0)
    assert torch.equal(apply(block, x, c=tokens(2, 1, 1)), x)


def test_the_final_layer_is_modulated_only_in_the_adaptive_designs() -> None:
    adaptive, plain = FinalLayer(CONFIG, 8, adaptive=True), FinalLayer(CONFIG, 8, adaptive=False)
    assert adaptive.norm is None
    assert plain.modulation is None
    randomise(adaptive)
    randomise(plain)
    x, c = tokens(2, 7, 0), tokens(2, 1, 1)
    assert adaptive.modulation is not None
    assert isinstance(plain.norm, nn.LayerNorm)
    vectors = adaptive.modulation(F.silu(c))
    modulated = nn.LayerNorm(WIDTH, eps=1e-6)(x) * (1 + vectors[..., WIDTH:]) + vectors[..., :WIDTH]
    torch.testing.assert_close(adaptive(x, c, LAYOUT), adaptive.linear(modulated), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(plain(x, None, LAYOUT), plain.linear(plain.norm(x)), atol=1e-6, rtol=0)


def test_weights_of_cross_attention_equal_those_of_torch() -> None:
    ours, theirs = CrossAttention(WIDTH, HEADS), nn.MultiheadAttention(WIDTH, HEADS, batch_first=True)
    randomise(ours)
    fill(theirs, ours)
    x, context, mask = tokens(2, 7, 0), tokens(2, 4, 1), torch.tensor([[True, True, True, False], [True] * 4])
    _, expected = theirs(x, context, context, ~mask, average_attn_weights=False)
    torch.testing.assert_close(ours.weights(x, context, mask), expected)
