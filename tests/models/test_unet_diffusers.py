"""Both designs of U-Net with converted weights against diffusers' UNet2DModel and UNet2DConditionModel, whole."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, cast

import diffusers
import pytest
import torch
from specs import image_spec
from torch import Tensor

from ditlab.models import Condition, NetworkSpec, UNet, UNetConfig

RESIDUAL = {
    "norm1": "norm1", "convolution1": "conv1", "modulation": "time_emb_proj", "norm2": "norm2", "convolution2": "conv2",
    "shortcut": "conv_shortcut", "convolution": "conv",
}  # fmt: skip
ONE = "transformer_blocks.0"
TRANSFORMER = {
    "norm": "norm", "embedding": "proj_in", "norm1": f"{ONE}.norm1", "norm_cross": f"{ONE}.norm2", "norm2": f"{ONE}.norm3",
    "mlp_up": f"{ONE}.ff.net.0.proj", "mlp_down": f"{ONE}.ff.net.2", "projection": "proj_out",
    **{
        f"{ours}.{name}": f"{ONE}.{theirs}.{to}"
        for ours, theirs in (("attention", "attn1"), ("cross_attention", "attn2"))
        for name, to in (("query", "to_q"), ("key", "to_k"), ("value", "to_v"), ("projection", "to_out.0"))
    },
}  # fmt: skip
ROOT = {
    "timestep_embedding.mlp.0": "time_embedding.linear_1", "timestep_embedding.mlp.2": "time_embedding.linear_2",
    "condition_embedding.labels.table": "class_embedding", "first_layer": "conv_in", "last_norm": "conv_norm_out",
    "last_layer": "conv_out",
}  # fmt: skip


def places(network: UNet) -> Iterator[tuple[str, str]]:
    """Each part of ours, with its place in theirs."""
    per = network.config.blocks
    for way, count, resampler in (("down", per, "downsamplers"), ("up", per + 1, "upsamplers")):
        for index in range(len(getattr(network, way))):
            level, step = divmod(index, count + 1)
            part = f"{resampler}.0" if step == count else f"resnets.{step}"
            yield f"{way}.{index}.convolutions", f"{way}_blocks.{level}.{part}"
            yield f"{way}.{index}.attention", f"{way}_blocks.{level}.attentions.{step}"
    yield "middle.0.convolutions", "mid_block.resnets.0"
    yield "middle.0.attention", "mid_block.attentions.0"
    yield "middle.1.convolutions", "mid_block.resnets.1"


def converted(network: UNet) -> dict[str, Tensor]:
    """Our weights under diffusers' names."""
    table = dict(places(network))
    found: dict[str, Tensor] = {}
    for path, tensor in network.state_dict().items():
        module, _, kind = path.rpartition(".")
        if module in ROOT:
            found[f"{ROOT[module]}.{kind}"] = tensor
            continue
        way, index, part, name = module.split(".", 3)
        place = table[f"{way}.{index}.{part}"]
        if part == "convolutions":
            found[f"{place}.{RESIDUAL[name]}.{kind}"] = tensor
        elif name == "attention.qkv":
            for to, each in zip(("to_q", "to_k", "to_v"), tensor.chunk(3), strict=True):
                found[f"{place}.{to}.{kind}"] = each
        elif network.adm:
            found[f"{place}.{ {'norm': 'group_norm', 'attention.projection': 'to_out.0'}[name] }.{kind}"] = tensor
        else:
            pixelwise = name in ("embedding", "projection") and kind == "weight"
            found[f"{place}.{TRANSFORMER[name]}.{kind}"] = tensor[:, :, None, None] if pixelwise else tensor
    return found


def drawn(config: UNetConfig, shape: NetworkSpec) -> UNet:
    """A network with its initial weights, moved so that none is zero and no norm the plain one."""
    generator = torch.Generator().manual_seed(0)
    network = UNet(config, shape).initialise(generator).eval()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter += 0.03 * torch.randn(parameter.shape, generator=generator)
    return network


def batch(shape: NetworkSpec) -> tuple[Tensor, Tensor, Tensor]:
    x = torch.randn(
        3, shape.latent.channels, shape.latent.size[0], shape.latent.size[1], generator=torch.Generator().manual_seed(1)
    )
    return x, torch.tensor([0.0, 421.0, 999.0]), torch.tensor([0, 9, -1])


SHARED: dict[str, Any] = {"layers_per_block": 2, "block_out_channels": (128, 128, 256), "sample_size": 8}


def test_adms_design_gives_what_diffusers_gives() -> None:
    shape = image_spec(3, 8, 16, classes=10, learned_variance=True)
    config = UNetConfig(width=128, multipliers=(1.0, 1.0, 2.0), attention=(4,), head_width=64)
    ours = drawn(config, shape)
    theirs = diffusers.UNet2DModel(
        in_channels=3, out_channels=6, attention_head_dim=64, num_class_embeds=11, norm_eps=1e-5, attn_norm_num_groups=32,
        down_block_types=("ResnetDownsampleBlock2D", "ResnetDownsampleBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "ResnetUpsampleBlock2D", "ResnetUpsampleBlock2D"),
        downsample_type="resnet", upsample_type="resnet", resnet_time_scale_shift="scale_shift", **SHARED,
    ).eval()  # fmt: skip
    theirs.load_state_dict(converted(ours))
    x, t, labels = batch(shape)
    with torch.no_grad():
        expected = cast(Any, theirs(x, t, class_labels=labels % 11)).sample
        found = ours(x, t, Condition.of_labels(labels))
    assert expected.std() > 0.1
    torch.testing.assert_close(found, expected, atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("heads", [1, 4])
def test_ldms_design_gives_what_diffusers_gives(heads: int) -> None:
    shape = image_spec(4, 8, 16, classes=10)
    config = UNetConfig(width=128, multipliers=(1.0, 1.0, 2.0), attention=(2, 4), heads=heads, design="ldm")
    ours = drawn(config, shape)
    theirs = diffusers.UNet2DConditionModel(
        in_channels=4, out_channels=4, attention_head_dim=heads, cross_attention_dim=512,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"), **SHARED,
    ).eval()  # fmt: skip
    weights = converted(ours)
    token = weights.pop("class_embedding.weight")
    theirs.load_state_dict(weights)
    x, t, labels = batch(shape)
    with torch.no_grad():
        expected = cast(Any, theirs(x, t, encoder_hidden_states=token[labels % 11][:, None])).sample
        found = ours(x, t, Condition.of_labels(labels))
    assert expected.std() > 0.1
    torch.testing.assert_close(found, expected, atol=2e-5, rtol=1e-4)
