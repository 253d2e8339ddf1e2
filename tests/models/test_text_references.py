"""The networks of text with converted weights against diffusers' SD3Transformer2DModel and PixArtTransformer2DModel."""

from __future__ import annotations

from collections.abc import Mapping

import diffusers
import pytest
import torch
from specs import text_entry
from torch import Tensor, nn

from ditlab.models import Condition, DiT, DiTConfig, Entry, LatentSpec, NetworkSpec, TextConfig

DEPTH, WIDTH, HEADS, SIDE, CHANNELS, FEATURES = 3, 32, 4, 8, 4, 12
GENERATOR = torch.Generator().manual_seed(0)


def randomised(module: nn.Module, std: float = 0.15) -> dict[str, Tensor]:
    """Every weight drawn; the module's state."""
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=std, generator=GENERATOR)
    return {name: tensor.detach() for name, tensor in module.state_dict().items()}


def joined(state: Mapping[str, Tensor], names: list[str]) -> dict[str, Tensor]:
    return {kind: torch.cat([state[f"{name}.{kind}"] for name in names]) for kind in ("weight", "bias")}


def of_sd3(state: Mapping[str, Tensor], qk_norm: bool) -> dict[str, Tensor]:
    """Weights of SD3's transformer by ditlab's names."""
    found: dict[str, Tensor] = {}

    def put(ours: str, *theirs: str) -> None:
        found.update({f"{ours}.{kind}": tensor for kind, tensor in joined(state, list(theirs)).items()})

    def swap(ours: str) -> None:
        """Scale, then shift in diffusers' AdaLayerNormContinuous; shift, then scale in ditlab."""
        for kind in ("weight", "bias"):
            *first, scale, shift = found[f"{ours}.{kind}"].split(WIDTH)
            found[f"{ours}.{kind}"] = torch.cat([*first, shift, scale])

    put("patch_embedding", "pos_embed.proj")
    found["patch_embedding.weight"] = found["patch_embedding.weight"].flatten(1)
    for ours, theirs in (("0", "1"), ("2", "2")):
        put(f"timestep_embedding.mlp.{ours}", f"time_text_embed.timestep_embedder.linear_{theirs}")
    put("condition_embedding.text.projection", "context_embedder")
    for n in range(DEPTH):
        block, theirs, last = f"blocks.{n}", f"transformer_blocks.{n}", n == DEPTH - 1
        put(f"{block}.modulation", f"{theirs}.norm1.linear", f"{theirs}.norm1_context.linear")
        if last:
            swap(f"{block}.modulation")
        put(f"{block}.attention.patches.qkv", *(f"{theirs}.attn.to_{name}" for name in "qkv"))
        put(f"{block}.attention.patches.projection", f"{theirs}.attn.to_out.0")
        text, used = ("key_value", "kv") if last else ("qkv", "qkv")
        put(f"{block}.attention.text.{text}", *(f"{theirs}.attn.add_{name}_proj" for name in used))
        put(f"{block}.mlp.up", f"{theirs}.ff.net.0.proj")
        put(f"{block}.mlp.down", f"{theirs}.ff.net.2")
        if not last:
            put(f"{block}.attention.text.projection", f"{theirs}.attn.to_add_out")
            put(f"{block}.text_mlp.up", f"{theirs}.ff_context.net.0.proj")
            put(f"{block}.text_mlp.down", f"{theirs}.ff_context.net.2")
        for name in "qk" if qk_norm else "":
            found[f"{block}.attention.patches.norm_{name}.weight"] = state[f"{theirs}.attn.norm_{name}.weight"]
            if not last or name == "k":
                found[f"{block}.attention.text.norm_{name}.weight"] = state[f"{theirs}.attn.norm_added_{name}.weight"]
    put("final_layer.modulation", "norm_out.linear")
    swap("final_layer.modulation")
    put("final_layer.linear", "proj_out")
    return found


@pytest.mark.parametrize("qk_norm", [False, True])
def test_the_joint_blocks_are_those_of_sd3(qk_norm: bool) -> None:
    """Every tensor is converted. SD3 takes a pooled text of its own, ditlab the mean of its tokens.

    Both are the same vector here, though not a constant: ditlab's is a matrix A B of rank WIDTH / 2 times the mean m, and
    SD3 is given B m, which its Linear, SiLU, Linear turns into A B m, since silu(x) - silu(-x) = x.
    """
    rank = WIDTH // 2
    theirs = diffusers.SD3Transformer2DModel(
        sample_size=SIDE, patch_size=2, in_channels=CHANNELS, out_channels=CHANNELS, num_layers=DEPTH,
        attention_head_dim=WIDTH // HEADS, num_attention_heads=HEADS, joint_attention_dim=FEATURES,
        caption_projection_dim=WIDTH, pooled_projection_dim=rank, pos_embed_max_size=SIDE // 2,
        qk_norm="rms_norm" if qk_norm else None,
    ).eval()  # fmt: skip
    ours = DiT(
        DiTConfig(depth=DEPTH, width=WIDTH, heads=HEADS, block="joint", qk_norm=qk_norm),
        NetworkSpec(LatentSpec(CHANNELS, (SIDE, SIDE)), (TextConfig(features=FEATURES),)),
    ).eval()
    state = of_sd3(randomised(theirs), qk_norm)
    a, b, offset = (
        torch.randn(*shape, generator=GENERATOR) * 0.2 for shape in ((WIDTH, rank), (rank, WIDTH), (WIDTH,))
    )
    pooled = theirs.time_text_embed.text_embedder
    with torch.no_grad():
        pooled.linear_1.weight.copy_(torch.cat([torch.eye(rank), -torch.eye(rank)]))
        pooled.linear_1.bias.zero_()
        pooled.linear_2.weight.copy_(torch.cat([a, -a], dim=1))
        pooled.linear_2.bias.copy_(offset)
    state |= {"condition_embedding.text.pooled.weight": a @ b, "condition_embedding.text.pooled.bias": offset}
    state["condition_embedding.text.null"] = torch.zeros(WIDTH)
    ours.load_state_dict(state)

    x, t = torch.randn(3, CHANNELS, SIDE, SIDE, generator=GENERATOR), torch.tensor([1.0, 250.0, 999.0])
    text = torch.randn(3, 7, FEATURES, generator=GENERATOR)  # of one length: SD3 does not mask padding
    with torch.no_grad():
        means = theirs.context_embedder(text).mean(dim=1)
        expected = theirs(x, text, means @ b.T, t).sample
        found = ours(x, t, Condition({"text": Entry(text, torch.ones(3, dtype=torch.bool))}))
    assert expected.std() > 0.1
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)


def of_pixart(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights of PixArt-alpha's transformer by ditlab's names."""
    found: dict[str, Tensor] = {}

    def put(ours: str, *theirs: str) -> None:
        found.update({f"{ours}.{kind}": tensor for kind, tensor in joined(state, list(theirs)).items()})

    put("patch_embedding", "pos_embed.proj")
    found["patch_embedding.weight"] = found["patch_embedding.weight"].flatten(1)
    for ours, theirs in (("0", "1"), ("2", "2")):
        put(f"timestep_embedding.mlp.{ours}", f"adaln_single.emb.timestep_embedder.linear_{theirs}")
        put(f"condition_embedding.text.projection.{ours}", f"caption_projection.linear_{theirs}")
    put("shared_modulation", "adaln_single.linear")
    for n in range(DEPTH):
        block, theirs = f"blocks.{n}", f"transformer_blocks.{n}"
        found[f"{block}.modulation.table"] = state[f"{theirs}.scale_shift_table"].flatten()
        put(f"{block}.attention.qkv", *(f"{theirs}.attn1.to_{name}" for name in "qkv"))
        put(f"{block}.attention.projection", f"{theirs}.attn1.to_out.0")
        put(f"{block}.cross_attention.query", f"{theirs}.attn2.to_q")
        put(f"{block}.cross_attention.key_value", f"{theirs}.attn2.to_k", f"{theirs}.attn2.to_v")
        put(f"{block}.cross_attention.projection", f"{theirs}.attn2.to_out.0")
        put(f"{block}.mlp.up", f"{theirs}.ff.net.0.proj")
        put(f"{block}.mlp.down", f"{theirs}.ff.net.2")
    found["final_layer.modulation.table"] = state["scale_shift_table"].flatten()
    put("final_layer.linear", "proj_out")
    return found


def test_the_adaln_cross_attention_blocks_are_those_of_pixart() -> None:
    theirs = diffusers.PixArtTransformer2DModel(
        num_attention_heads=HEADS, attention_head_dim=WIDTH // HEADS, in_channels=CHANNELS, out_channels=2 * CHANNELS,
        num_layers=DEPTH, cross_attention_dim=WIDTH, sample_size=SIDE, patch_size=2, caption_channels=FEATURES,
    ).eval()  # fmt: skip
    ours = DiT(
        DiTConfig(depth=DEPTH, width=WIDTH, heads=HEADS, block="adaln-cross-attention", shared_modulation=True),
        NetworkSpec(
            LatentSpec(CHANNELS, (SIDE, SIDE)),
            (TextConfig(features=FEATURES, projection="mlp"),),
            learned_variance=True,
        ),
    ).eval()
    state = of_pixart(randomised(theirs))
    ours.load_state_dict({**state, "condition_embedding.text.null": torch.zeros(WIDTH)})
    x, t = torch.randn(3, CHANNELS, SIDE, SIDE, generator=GENERATOR), torch.tensor([0.0, 250.0, 999.0])
    entry = text_entry((2, 7, 1), 7, FEATURES)
    assert entry.mask is not None
    with torch.no_grad():
        expected = theirs(x, entry.value, t, encoder_attention_mask=entry.mask.long()).sample
        found = ours(x, t, Condition({"text": entry}))
        unmasked = ours(x, t, Condition({"text": Entry(entry.value, entry.present)}))
    assert expected.std() > 0.1
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)
    assert (unmasked - found)[[0, 2]].abs().amax(dim=(1, 2, 3)).min() > 1e-2  # the mask matters
