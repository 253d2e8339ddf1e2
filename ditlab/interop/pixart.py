"""Read PixArt-alpha's transformers (Chen et al. 2023): its public layout, and folders of diffusers' PixArtTransformer2DModel.

The network is a DiT of ``adaln-cross-attention`` blocks with shared modulation. The features of an absent text are learned in
the public layout; diffusers' has none and its pipeline encodes an empty prompt instead, see ``set_null``.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ditlab.diffusion import GuidanceConfig
from ditlab.encoders import TextEncoderConfig
from ditlab.encoders.text_frozen import FrozenText
from ditlab.errors import UserError
from ditlab.interop.checkpoint import Weights, folder_weights
from ditlab.interop.official import POSITIONS, Imported, renamed
from ditlab.interop.settings import Choices, diffusion_of, heads_of
from ditlab.models import DiT, DiTConfig, LatentSpec, NetworkSpec, TextConfig
from ditlab.models.layout import sincos_positions
from ditlab.pipelines import SampleConfig
from ditlab.runtime.weights import check_weights

TRANSFORMER = "PixArtTransformer2DModel"
MARK, CAPTION = "y_embedder.y_proj.fc1.weight", "y_embedder.y_embedding"
# Parts of tensor names: in the public layout, and in ditlab.
NAMES = {
    "x_embedder.proj": "patch_embedding",
    "t_embedder.mlp": "timestep_embedding.mlp",
    "t_block.1": "shared_modulation",
    "y_embedder.y_proj.fc1": "condition_embedding.text.projection.0",
    "y_embedder.y_proj.fc2": "condition_embedding.text.projection.2",
    "cross_attn.q_linear": "cross_attention.query",
    "cross_attn.kv_linear": "cross_attention.key_value",
    "cross_attn.proj": "cross_attention.projection",
    "attn.qkv": "attention.qkv",
    "attn.proj": "attention.projection",
    "mlp.fc1": "mlp.up",
    "mlp.fc2": "mlp.down",
    "scale_shift_table": "modulation.table",
}
# Names in the public layout and in diffusers': of tensors in every block, and of the others.
BLOCK = {
    "attn.qkv": ("attn1.to_q", "attn1.to_k", "attn1.to_v"),
    "attn.proj": ("attn1.to_out.0",),
    "cross_attn.q_linear": ("attn2.to_q",),
    "cross_attn.kv_linear": ("attn2.to_k", "attn2.to_v"),
    "cross_attn.proj": ("attn2.to_out.0",),
    "mlp.fc1": ("ff.net.0.proj",),
    "mlp.fc2": ("ff.net.2",),
}
ONCE = {
    "x_embedder.proj": "pos_embed.proj",
    "t_embedder.mlp.0": "adaln_single.emb.timestep_embedder.linear_1",
    "t_embedder.mlp.2": "adaln_single.emb.timestep_embedder.linear_2",
    "t_block.1": "adaln_single.linear",
    "y_embedder.y_proj.fc1": "caption_projection.linear_1",
    "y_embedder.y_proj.fc2": "caption_projection.linear_2",
    "final_layer.linear": "proj_out",
}
# Of diffusers' configuration, what the network supports.
FIXED = {
    "norm_type": "ada_norm_single", "activation_fn": "gelu-approximate", "attention_type": "default", "attention_bias": True,
    "norm_elementwise_affine": False,
}  # fmt: skip
TEXT = "DeepFloyd/t5-v1_1-xxl"  # PixArt-alpha's text encoder
LENGTH = 120  # tokens of a caption where the checkpoint does not say: PixArt-alpha's


def is_pipeline(index: Mapping[str, Any]) -> bool:
    """Whether a folder with this ``model_index.json`` is PixArt's pipeline."""
    return (index.get("transformer") or [None])[-1] == TRANSFORMER


def imported(weights: Weights, path: Path, choices: Choices) -> Imported:
    """A network in evaluation mode from tensors in the public layout; ``path`` is for errors.

    Raises:
        UserError: classes or another process are given, or the tensors are of another architecture.
    """
    if choices.classes or choices.process not in ("auto", "dit"):
        raise UserError(f"{path} is a PixArt, which takes text and has DiT's process; omit --classes and --process")
    tensors, notes = {name: tensor.float() for name, tensor in weights.tensors.items()}, list(weights.notes)
    if sized := next((name for name in tensors if name.startswith(("csize_embedder.", "ar_embedder."))), ""):
        raise UserError(
            f"{path} is a PixArt that takes the resolution and aspect ratio of its images ({sized}); ditlab reads those of "
            "256 and 512 pixels"
        )
    try:
        kernel = tensors["x_embedder.proj.weight"]
        width, channels, patch, _ = kernel.shape
        features = tensors[MARK].shape[1]
        out, inner = len(tensors["final_layer.linear.weight"]), len(tensors["blocks.0.mlp.fc1.weight"])
        positions = tensors.pop(POSITIONS)
    except (KeyError, ValueError, IndexError) as error:
        raise UserError(f"{path} is of another architecture: not PixArt-alpha's layout, {error} is missing") from error
    side = round(positions.shape[1] ** 0.5)
    fixed = sincos_positions(width, (side, side))[None]
    # Half precision rounds them by up to 0.004; scaled ones are further off.
    if positions.shape != fixed.shape or not torch.allclose(positions, fixed, rtol=0, atol=0.005):
        raise UserError(f"{path} is of another architecture: its positions are not the unscaled sine-cosine ones")
    heads, note = heads_of(width, weights.settings, 0, choices.heads)
    notes.append(note)
    blocks = [int(match[1]) for name in tensors if (match := re.match(r"blocks\.(\d+)\.", name))]
    config = DiTConfig(
        depth=max(blocks) + 1, width=width, heads=heads, patch=patch, mlp_ratio=inner / width, block="adaln-cross-attention",
        shared_modulation=True,
    )  # fmt: skip
    caption = tensors.pop(CAPTION, None)
    length, null = (LENGTH, 1) if caption is None else (len(caption), len(caption))
    text = TextConfig(features=features, tokens=length, projection="mlp", null_tokens=null)
    spec = NetworkSpec(
        LatentSpec(channels, (side * patch,) * 2), (text,), learned_variance=out == 2 * channels * patch**2
    )
    network = DiT(config, spec)
    tensors["x_embedder.proj.weight"] = kernel.flatten(1)
    for name in [name for name in tensors if name.endswith("scale_shift_table")]:
        tensors[name] = tensors[name].flatten()
    table = {ours: theirs for theirs, ours in NAMES.items()}
    null_name = "condition_embedding.text.null"
    expected = {renamed(name, table): tensor for name, tensor in network.state_dict().items() if name != null_name}
    check_weights(expected, tensors, path)
    state = {renamed(name, NAMES): tensor for name, tensor in tensors.items()}
    network.load_state_dict({**state, null_name: network.state_dict()[null_name]})
    if caption is not None:
        set_null(network, caption)
    diffusion = diffusion_of("dit", spec.learned_variance, null=True)
    defaults = SampleConfig("dpm-solver", 20, GuidanceConfig(4.5))  # as diffusers' pipeline
    return Imported(network.eval(), diffusion, tuple(filter(None, notes)), defaults, null=caption is not None)


def text_encoder(found: Imported, path: str) -> FrozenText:
    """The frozen encoder of an imported network's prompts, a folder or hub id; the network gets its null where it has none.

    UserError: it cannot be read, or its features are not those that the network takes.
    """
    (condition,) = found.network.spec.conditions
    assert isinstance(condition, TextConfig)
    config = TextEncoderConfig("transformers", condition.tokens, path=path, lowercase=True)
    encoder = FrozenText.build(config, ["an image"])
    if encoder.features != condition.features:
        raise UserError(
            f"the text encoder {path} has {encoder.features} features, the network takes {condition.features}; give --text"
        )
    if not found.null:
        features = encoder.empty_features()
        if len(features) != condition.null_tokens:
            raise UserError(
                f"the text encoder {path} gives an empty prompt {len(features)} tokens, not one; give --text"
            )
        set_null(found.network, features)
        encoder.release()
    return encoder


def set_null(network: DiT, features: Tensor) -> None:
    """Make features (K, E) of a text the null of a network with K null tokens: of an empty prompt, as diffusers' pipeline."""
    embedding: Any = network.condition_embedding["text"]
    with torch.no_grad():
        embedding.null.copy_(embedding.projection(features.float()).view_as(embedding.null))


def read_transformer(folder: Path, config: dict[str, Any]) -> Imported:
    """The network in a folder of diffusers' PixArtTransformer2DModel with this configuration.

    Raises:
        UserError: the network has features that ditlab does not support, or its files do not fit together.
    """
    try:
        heads, size, patch, depth = (
            int(config[name]) for name in ("num_attention_heads", "sample_size", "patch_size", "num_layers")
        )
        width = heads * int(config["attention_head_dim"])
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{folder / 'config.json'} does not describe a transformer ({error})") from error
    for name, value in FIXED.items():
        if config.get(name, value) != value:
            raise UserError(f"{folder} has {name} {config[name]}; ditlab reads PixArt with {value}")
    sized = config.get("use_additional_conditions")
    if sized or (sized is None and size == 128):
        raise UserError(
            f"{folder} takes the resolution and aspect ratio of its images; ditlab reads PixArt of 256 and 512 pixels"
        )
    if (config.get("interpolation_scale") or max(size // 64, 1)) != 1:
        raise UserError(f"{folder} scales its positions (interpolation_scale); ditlab reads PixArt with unscaled ones")
    weights = folder_weights(folder)
    try:
        tensors = _public(weights.tensors, depth)
    except KeyError as error:
        raise UserError(f"the weights in {folder} lack the tensor {error}") from error
    tensors[POSITIONS] = sincos_positions(width, (size // patch,) * 2)[None]
    return imported(Weights(tensors, {"num_heads": heads}, notes=weights.notes), folder, Choices())


def _public(theirs: dict[str, Tensor], depth: int) -> dict[str, Tensor]:
    """From tensors of diffusers to those of the public layout."""
    tensors = {"final_layer.scale_shift_table": theirs["scale_shift_table"]}
    for kind in ("weight", "bias"):
        for public, name in ONCE.items():
            tensors[f"{public}.{kind}"] = theirs[f"{name}.{kind}"]
        for n in range(depth):
            for public, names in BLOCK.items():
                parts = [theirs[f"transformer_blocks.{n}.{name}.{kind}"] for name in names]
                tensors[f"blocks.{n}.{public}.{kind}"] = torch.cat(parts)
    for n in range(depth):
        tensors[f"blocks.{n}.scale_shift_table"] = theirs[f"transformer_blocks.{n}.scale_shift_table"]
    return tensors
