"""The network with converted weights against diffusers' DiTTransformer2DModel."""

from __future__ import annotations

import diffusers
import pytest
import torch
from specs import image_spec
from torch import Tensor, nn

from ditlab.interop.official import state_dict
from ditlab.models import Condition, DiT, DiTConfig


def converted(tensors: dict[str, Tensor], depth: int) -> dict[str, Tensor]:
    """Diffusers' names: every block carries a copy of the timestep's and the label's embedding."""
    found: dict[str, Tensor] = {}

    def put(theirs: str, public: str, weight: Tensor | None = None, bias: Tensor | None = None) -> None:
        found[f"{theirs}.weight"] = tensors[f"{public}.weight"] if weight is None else weight
        found[f"{theirs}.bias"] = tensors[f"{public}.bias"] if bias is None else bias

    put("pos_embed.proj", "x_embedder.proj")
    for n in range(depth):
        block, public = f"transformer_blocks.{n}", f"blocks.{n}"
        put(f"{block}.norm1.emb.timestep_embedder.linear_1", "t_embedder.mlp.0")
        put(f"{block}.norm1.emb.timestep_embedder.linear_2", "t_embedder.mlp.2")
        table = f"{block}.norm1.emb.class_embedder.embedding_table.weight"
        found[table] = tensors["y_embedder.embedding_table.weight"]
        put(f"{block}.norm1.linear", f"{public}.adaLN_modulation.1")
        weights = tensors[f"{public}.attn.qkv.weight"].chunk(3)
        biases = tensors[f"{public}.attn.qkv.bias"].chunk(3)
        for name, weight, bias in zip(("to_q", "to_k", "to_v"), weights, biases, strict=True):
            put(f"{block}.attn1.{name}", "", weight, bias)
        put(f"{block}.attn1.to_out.0", f"{public}.attn.proj")
        put(f"{block}.ff.net.0.proj", f"{public}.mlp.fc1")
        put(f"{block}.ff.net.2", f"{public}.mlp.fc2")
    put("proj_out_1", "final_layer.adaLN_modulation.1")
    put("proj_out_2", "final_layer.linear")
    return found


@pytest.mark.parametrize(("patch", "channels", "learned"), [(2, 4, True), (4, 3, False)])
def test_outputs_are_those_of_diffusers(patch: int, channels: int, learned: bool) -> None:
    depth, width, heads, side, classes = 3, 32, 4, 16, 10
    shape = image_spec(channels, side, side, classes, learned)
    ours = DiT(DiTConfig(depth=depth, width=width, heads=heads, patch=patch), shape).eval()
    generator = torch.Generator().manual_seed(0)
    for parameter in ours.parameters():
        nn.init.normal_(parameter, std=0.15, generator=generator)
    theirs = diffusers.DiTTransformer2DModel(
        num_attention_heads=heads,
        attention_head_dim=width // heads,
        in_channels=channels,
        out_channels=channels * (2 if learned else 1),
        num_layers=depth,
        sample_size=side,
        patch_size=patch,
        num_embeds_ada_norm=classes,
        norm_eps=1e-6,
    ).eval()
    theirs.load_state_dict(converted(state_dict(ours), depth))
    for module in theirs.modules():
        # Diffusers spaces the timestep's frequencies over half - 1 intervals, the paper's public code over half.
        if type(module).__name__ == "Timesteps":
            module.downscale_freq_shift = 0  # type: ignore[assignment]

    x = torch.randn(5, channels, side, side, generator=generator)
    t = torch.tensor([0, 1, 250, 777, 999])
    labels = torch.tensor([0, 9, 4, classes, classes])
    with torch.no_grad():
        expected = theirs(x, t, labels).sample
        found = ours(x, t, Condition.of_labels(labels))
        null = ours(x, t, Condition.of_labels(torch.tensor([0, 9, 4, -1, -1])))
    assert expected.std() > 0.1
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)
    assert torch.equal(null, found)
