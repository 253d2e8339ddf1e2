"""Read and write checkpoints in the public DiT layout.

The layout is a flat dictionary of tensors, at the top level or under "ema", in a .pt file. It does not contain the number of
heads, which is that of the paper's model of the same width, or width / 64.
"""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from pathlib import Path

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from ditlab.diffusion import DiffusionConfig
from ditlab.encoders import load_pretrained
from ditlab.errors import UserError
from ditlab.models import SIZES, DiT, DiTConfig, LatentSpec, Network, labelled
from ditlab.models.layout import sincos_positions
from ditlab.pipelines import Pipeline, SampleConfig
from ditlab.runtime import files
from ditlab.runtime.weights import load_tensors, load_weights

# Parts of tensor names: in the public layout, and in ditlab.
NAMES = {
    "x_embedder.proj": "patch_embedding",
    "t_embedder.mlp": "timestep_embedding.mlp",
    "y_embedder.embedding_table": "condition_embedding.labels.table",
    "attn.qkv": "attention.qkv",
    "attn.proj": "attention.projection",
    "mlp.fc1": "mlp.up",
    "mlp.fc2": "mlp.down",
    "adaLN_modulation.1": "modulation",
    "final_layer": "final_layer",
}
POSITIONS = "pos_embed"
LATER = ("mlp", "norm", "positions", "qk_norm", "modulation_rank")  # options of blocks that the layout has no place for


def _renamed(name: str, table: dict[str, str]) -> str:
    for old, new in table.items():
        name = name.replace(old, new)
    return name


def _read_tensors(path: Path) -> dict[str, Tensor]:
    if not path.is_file():
        raise UserError(
            f"no checkpoint at {path}; the published ones are dl.fbaipublicfiles.com/DiT/models/DiT-XL-2-256x256.pt and "
            "DiT-XL-2-512x512.pt, tensors by name at the top level or under 'ema'"
        )
    content = load_tensors(path)
    if isinstance(content, dict) and isinstance(content.get("ema"), dict):
        content = content["ema"]
    if not isinstance(content, dict) or not all(
        isinstance(name, str) and isinstance(value, Tensor) for name, value in content.items()
    ):
        raise UserError(
            f"{path} is not in the public DiT layout: expected tensors by name, at the top level or under 'ema'"
        )
    return content


def read(path: str | Path, heads: int = 0) -> DiT:
    """A DiT in evaluation mode from a checkpoint in the public layout: a .pt, read without running code, or a .safetensors.

    Depth, width, patch, channels, classes and image size are inferred from the tensors; 0 ``heads`` are those of the
    paper's model of the same width, or width / 64. Call it as ``network(x, t, Condition.of_labels(labels))`` with t from 0
    to 999. UserError: a missing file, a pickle that contains code, or another architecture.
    """
    return network(_read_tensors(Path(path)), Path(path), heads)


def network(tensors: dict[str, Tensor], path: Path, heads: int = 0) -> DiT:
    """A DiT from tensors in the public layout, as ``read``; ``path`` is for its errors."""
    try:
        kernel = tensors["x_embedder.proj.weight"]
        width, channels, patch, _ = kernel.shape
        tokens = tensors[POSITIONS].shape[1]
        rows = tensors["y_embedder.embedding_table.weight"].shape[0]
        out = tensors["final_layer.linear.weight"].shape[0]
        blocks = [int(match[1]) for name in tensors if (match := re.match(r"blocks\.(\d+)\.", name))]
        modulation = tensors["blocks.0.adaLN_modulation.1.weight"].shape[0]
        inner = tensors["blocks.0.mlp.fc1.weight"].shape[0]
    except (KeyError, ValueError, IndexError) as error:
        raise UserError(
            f"{path} is of another architecture: not in the public DiT layout ({error} is missing or misshapen)"
        ) from error
    side = round(tokens**0.5)
    if side * side != tokens or modulation != 6 * width:
        raise UserError(
            f"{path} is of another architecture: {tokens} positions and {modulation / width:g} modulation vectors"
        )
    heads = heads or next((heads for _, w, heads in SIZES.values() if w == width), max(1, width // 64))
    config = DiTConfig(depth=max(blocks) + 1, width=width, heads=heads, patch=patch, mlp_ratio=inner / width)
    # The public table has a null row only where labels were dropped in training, as in every published checkpoint.
    latent = LatentSpec(channels, (side * patch, side * patch))
    spec = labelled(latent, rows - 1, learned_variance=out == 2 * channels * patch**2)
    weights = {_renamed(name, NAMES): tensor.float() for name, tensor in tensors.items() if name != POSITIONS}
    weights["patch_embedding.weight"] = kernel.float().flatten(1)
    built = DiT(config, spec)
    found, fixed = tensors[POSITIONS].float(), sincos_positions(width, (side, side))[None]
    # Half precision rounds them by up to 0.004; learned ones are further off.
    if found.shape != fixed.shape or not torch.allclose(found, fixed, rtol=0, atol=0.005):
        raise UserError(f"{path} is of another architecture: its positions are not the fixed sine-cosine ones")
    load_weights(built, weights, path)
    return built.eval()


def fits(network: Network, what: str = "the public DiT layout") -> Network:
    """Check that a network is the paper's: adaln-zero blocks, a square latent, a null class, and no later options.

    UserError: it is another; the message names ``what`` and the difference.
    """
    config, spec = network.config, network.spec
    if not network.supports.tokens:
        raise UserError(f"{what} holds diffusion transformers; this network is a {config.kind}")
    size, nullable = spec.latent.size, spec.conditions == labelled(spec.latent, spec.classes).conditions
    if config.block != "adaln-zero" or size != size[:1] * 2 or not nullable:
        raise UserError(
            f"{what} holds adaln-zero blocks, square latents and a null class; this network has "
            f"{config.block}, {'x'.join(map(str, size))}{'' if nullable else ', no null class'}"
        )
    default = type(config)()
    found = [(name, getattr(config, name)) for name in LATER if getattr(config, name) != getattr(default, name)]
    if found:
        listed = ", ".join(f"{name} {value}" for name, value in found)
        raise UserError(f"{what} holds the paper's blocks; this network has {listed}")
    return network


def paper(model: Pipeline, what: str = "the public DiT layout") -> Network:
    """The network of a model that is the paper's in network and process; errors as ``fits``."""
    network, diffusion = fits(model.network, what), model.diffusion
    if (diffusion.schedule, diffusion.target) != ("linear-beta", "epsilon"):
        raise UserError(
            f"{what} holds networks that predict epsilon with linear betas; this one has {diffusion.schedule} and predicts "
            f"{diffusion.target}"
        )
    return network


def export(model: Pipeline, out: Path, force: bool = False) -> None:
    """Write a network as a checkpoint for the public code's ``load_state_dict``; ``force`` replaces an existing file.

    UserError: the layout does not support this model, ``out`` exists, is no .pt or .safetensors, or cannot be written.
    """
    tensors = {name: tensor.cpu().contiguous() for name, tensor in state_dict(paper(model)).items()}
    if out.suffix not in (".pt", ".safetensors"):
        raise UserError(f"{out} must end in .pt or .safetensors")
    if out.exists() and not force:
        raise UserError(f"{out} already exists; choose another file or use --force")
    buffer = io.BytesIO()
    if out.suffix == ".pt":
        torch.save(tensors, buffer)
    files.write_file(out, buffer.getvalue() or safetensors.torch.save(tensors))


def state_dict(network: Network) -> dict[str, Tensor]:
    """A DiT's weights in the public layout, which does not contain the number of heads; errors as ``fits``."""
    config, latent = fits(network).config, network.spec.latent
    table = {ours: theirs for theirs, ours in NAMES.items()}
    tensors = {_renamed(name, table): tensor.detach().clone() for name, tensor in network.state_dict().items()}
    kernel = tensors["x_embedder.proj.weight"]
    tensors["x_embedder.proj.weight"] = kernel.view(config.width, latent.channels, config.patch, config.patch)
    tensors[POSITIONS] = sincos_positions(config.width, (latent.size[0] // config.patch,) * 2)[None]
    return tensors


def import_checkpoint(checkpoint: Path, out: Path, vae: str, force: bool = False) -> Path:
    """Write a ditlab model into the folder ``out`` from a public checkpoint and a VAE, a folder or a hub id.

    UserError: the checkpoint or the VAE cannot be read, or ``out`` contains a model and ``force`` is off.
    """
    if (out / "model.json").exists() and not force:
        raise UserError(f"{out} already contains a model; choose another folder or use --force")
    assemble(read(checkpoint), vae, "", [], SampleConfig(), checkpoint.name).save(out)
    return out


def assemble(
    network: Network, vae: str, subfolder: str, names: Sequence[str], defaults: SampleConfig, source: str
) -> Pipeline:
    """A model of the paper's process with a pretrained VAE; without ``names`` classes are named by their numbers.

    UserError: the VAE cannot be read, or has another number of latent channels than the network.
    """
    spec, autoencoder = network.spec, load_pretrained(vae, subfolder)
    if autoencoder.latent_channels != spec.latent.channels:
        raise UserError(
            f"{vae} has {autoencoder.latent_channels} latent channels, the checkpoint {spec.latent.channels}"
        )
    diffusion = DiffusionConfig(learned_variance=spec.learned_variance)
    labels = names or [str(label) for label in range(spec.classes)]
    return Pipeline(network, diffusion, autoencoder, labels, defaults, {"imported": source})
