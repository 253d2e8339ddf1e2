"""Models as diffusers keeps them: a folder that its ``DiTPipeline.from_pretrained`` loads, written and read.

Where the two differ, weights take up the difference, so that both make the same images of the same noise:

- The pipeline scales latents by one number, ditlab by a mean and a spread a channel. Those go into the 1x1 convolutions on
  both sides of the latent.
- Its null class is number 1000, whatever the data. The label table grows to 1001 rows.
- Its 128 frequencies of a timestep end at 1/10000, ditlab's and the public code's just before it; see ``refit``.
"""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor
from torch.nn import functional as F

from ditlab.diffusion import DiffusionConfig
from ditlab.encoders import DiffusersAutoencoder, load_pretrained
from ditlab.errors import UserError
from ditlab.interop import official
from ditlab.models import DiT
from ditlab.models.embeddings import sincos_positions
from ditlab.pipelines import Pipeline, SampleConfig
from ditlab.runtime import files

INDEX, WEIGHTS = "model_index.json", "diffusion_pytorch_model.safetensors"
NULL = 1000  # the pipeline's number of no class
STEPS = (1000, 500, 250, 125, 50, 25, 10, 5)  # of sampling; a network's timesteps are mended for one of them
CLOSE = 2e-5  # of what an embedding's entries are, where it is mended
SCHEDULER = {
    "num_train_timesteps": 1000, "beta_start": 1e-4, "beta_end": 0.02, "beta_schedule": "linear", "prediction_type": "epsilon",
    "trained_betas": None,
}  # fmt: skip
SAMPLING = {"clip_sample": False, "set_alpha_to_one": True, "steps_offset": 0, "timestep_spacing": "leading"}
# The public layout's names of each tensor that is in every block there, and of those that are there once.
BLOCK = {
    "adaLN_modulation.1": "norm1.linear", "attn.proj": "attn1.to_out.0", "mlp.fc1": "ff.net.0.proj", "mlp.fc2": "ff.net.2",
}  # fmt: skip
ONCE = {
    "x_embedder.proj": "pos_embed.proj", "final_layer.adaLN_modulation.1": "proj_out_1", "final_layer.linear": "proj_out_2",
}  # fmt: skip
EMBEDDING = {"t_embedder.mlp.0": "timestep_embedder.linear_1", "t_embedder.mlp.2": "timestep_embedder.linear_2"}
TABLE, THEIR_TABLE = "y_embedder.embedding_table.weight", "class_embedder.embedding_table.weight"
QKV = ("to_q", "to_k", "to_v")
KINDS = ("weight", "bias")


def export(model: Pipeline, out: Path, force: bool = False) -> int:
    """Write a folder for ``DiTPipeline.from_pretrained``.

    Args:
        model: an adaln-zero DiT of the paper's process, on latents of a KL autoencoder.
        out: the folder.
        force: replace a pipeline that is there.

    Returns:
        The number of steps for which, and for whose divisors, the pipeline's timesteps are the model's (``refit``).

    Raises:
        UserError: the pipeline has no place for this model, or ``out`` holds something.
    """
    network, autoencoder = _parts(model)
    if out.exists() and not (force and (out / INDEX).is_file()) and not (out.is_dir() and not any(out.iterdir())):
        mend = "say --force to replace it" if (out / INDEX).is_file() else "choose another folder"
        raise UserError(f"{out} is there already; {mend}")
    tensors = official.state_dict(network)
    steps = refit(tensors, ours=False)
    config, shape = network.config, network.input
    table = torch.zeros(NULL + 1, config.width)
    table[: shape.classes], table[NULL] = tensors[TABLE][:-1], tensors[TABLE][-1]
    tensors[TABLE] = table
    transformer = {
        "_class_name": "DiTTransformer2DModel", "num_attention_heads": config.heads,
        "attention_head_dim": config.width // config.heads, "num_layers": config.depth, "patch_size": config.patch,
        "in_channels": shape.channels, "out_channels": shape.channels * (2 if shape.learned_variance else 1),
        "sample_size": shape.height, "num_embeds_ada_norm": NULL, "activation_fn": "gelu-approximate", "attention_bias": True,
        "norm_type": "ada_norm_zero", "norm_elementwise_affine": False, "norm_eps": 1e-6,
    }  # fmt: skip
    names = dict(enumerate(model.names)) or {label: str(label) for label in range(shape.classes)}
    index = {
        "_class_name": "DiTPipeline", "id2label": names, "scheduler": ["diffusers", "DDIMScheduler"],
        "transformer": ["diffusers", "DiTTransformer2DModel"], "vae": ["diffusers", "AutoencoderKL"],
    }  # fmt: skip
    vae = scaled(autoencoder)
    temporary = files.begin_folder(out)
    with files.finishing_folder(temporary, out):
        (temporary / "transformer").mkdir()
        (temporary / "scheduler").mkdir()
        (temporary / "transformer" / WEIGHTS).write_bytes(safetensors.torch.save(_theirs(tensors, config.depth)))
        vae.save_pretrained(temporary / "vae")
        scheduler = {"_class_name": "DDIMScheduler", **SCHEDULER, **SAMPLING}
        for name, record in (
            ("transformer/config.json", transformer), ("scheduler/scheduler_config.json", scheduler), (INDEX, index),
        ):  # fmt: skip
            (temporary / name).write_text(json.dumps(record, indent=2) + "\n")
    return steps


def read(folder: Path) -> Pipeline:
    """A model from a folder of diffusers' DiTPipeline; it samples with 50 DDIM steps unless told otherwise, as that does.

    Raises:
        UserError: no such pipeline, or one that does what ditlab does not.
    """
    index = _record(folder / INDEX)
    if index.get("_class_name") != "DiTPipeline":
        raise UserError(f"{folder} holds a {index.get('_class_name')}; ditlab reads a DiTPipeline, and folders of VAEs")
    scheduler = _record(folder / "scheduler" / "scheduler_config.json")
    for name, value in SCHEDULER.items():
        if scheduler.get(name, value) != value:
            raise UserError(f"{folder} has a scheduler with {name} {scheduler[name]}; ditlab's linear-beta has {value}")
    config, path = _record(folder / "transformer" / "config.json"), folder / "transformer" / WEIGHTS
    try:
        tensors = _public(safetensors.torch.load(path.read_bytes()), int(config["num_layers"]))
        heads, side, patch = (int(config[name]) for name in ("num_attention_heads", "sample_size", "patch_size"))
        width = heads * int(config["attention_head_dim"])
    except (OSError, KeyError, TypeError, ValueError, IndexError, safetensors.SafetensorError) as error:
        raise UserError(f"{path} is not the transformer that {INDEX} speaks of ({error})") from error
    tensors[official.POSITIONS] = sincos_positions(width, side // patch, side // patch)[None]
    names = index.get("id2label") or {}
    known = [names.get(str(label)) for label in range(len(names))]
    if known and None not in known and len(known) < len(tensors[TABLE]):  # the other rows are of labels without a name
        tensors[TABLE] = torch.cat([tensors[TABLE][: len(known)], tensors[TABLE][-1:]])
    refit(tensors, ours=True)
    network = official.network(tensors, path, heads)
    shape = network.input
    autoencoder = load_pretrained(str(folder), "vae")
    if autoencoder.latent_channels != shape.channels:
        raise UserError(
            f"{folder}'s VAE has {autoencoder.latent_channels} latent channels, its transformer {shape.channels}"
        )
    pixels = (autoencoder.channels, shape.height * autoencoder.factor, shape.width * autoencoder.factor)
    labels = [str(name) for name in known] if len(known) == shape.classes else list(map(str, range(shape.classes)))
    diffusion = DiffusionConfig(learned_variance=shape.learned_variance)
    return Pipeline(
        network, diffusion, autoencoder, pixels, labels, SampleConfig("ddim", 50), {"imported": folder.name}
    )


def refit(tensors: dict[str, Tensor], ours: bool) -> int:
    """Change the second Linear of a timestep's embedding so that it gives the same with the other frequencies.

    Sines of other frequencies are not sums of the given ones, but the hidden layer's D outputs and its bias, between them,
    can be weighted to give any D + 1 timesteps exactly: the smallest change that does so is taken, for as many evenly spaced
    timesteps as there is room for (all 1000 in DiT-XL, 250 in DiT-S).

    Args:
        tensors: in the public layout; changed.
        ours: to ditlab's frequencies; otherwise from them to diffusers'.

    Returns:
        How many evenly spaced timesteps, from 0, are right; so are those of any divisor of it.
    """
    first, bias = (tensors[f"t_embedder.mlp.0.{kind}"].double() for kind in KINDS)
    second, offset = (tensors[f"t_embedder.mlp.2.{kind}"].double() for kind in KINDS)
    half = first.shape[1] // 2

    def hidden(intervals: int) -> Tensor:
        frequencies = torch.exp(-math.log(10000) * torch.arange(half, dtype=torch.float32) / intervals)
        angles = torch.arange(1000, dtype=torch.float32)[:, None] * frequencies  # rounded as both networks round them
        return F.silu(F.linear(torch.cat([angles.cos(), angles.sin()], dim=1).double(), first, bias))

    before, after = hidden(half - 1 if ours else half), hidden(half if ours else half - 1)
    wanted = F.linear(before, second, offset)
    after = torch.cat([after, torch.ones(1000, 1, dtype=torch.float64)], dim=1)
    start = torch.cat([second.T, offset[None]])
    for steps in STEPS:
        rows = torch.arange(0, 1000, 1000 // steps)
        if steps <= after.shape[1]:
            change = torch.linalg.lstsq(after[rows], wanted[rows] - after[rows] @ start, driver="gelsd").solution
            found = (start + change).float()
            off = (after[rows].float() @ found - wanted[rows].float()).abs().max()
            if off <= CLOSE * wanted.abs().max():
                tensors["t_embedder.mlp.2.weight"] = found[:-1].T.contiguous()
                tensors["t_embedder.mlp.2.bias"] = found[-1].clone()
                return steps
    raise UserError("the timesteps' embedding has too few different values to be carried over")


def scaled(autoencoder: DiffusersAutoencoder) -> Any:
    """The VAE with the statistics of its latents inside: what it encodes is normalised, what it decodes is expected so."""
    vae, mean, std = copy.deepcopy(autoencoder.vae).cpu(), autoencoder.mean.cpu(), autoencoder.std.cpu()
    if _one_scale(autoencoder):
        vae.register_to_config(scaling_factor=1 / std[0].item(), shift_factor=None)
        return vae
    channels = len(mean)
    with torch.no_grad():
        inside, outside = vae.quant_conv, vae.post_quant_conv
        inside.weight[:channels] /= std[:, None]
        inside.bias[:channels] = (inside.bias[:channels] - mean.flatten()) / std.flatten()
        inside.bias[channels:] -= 2 * std.flatten().log()
        outside.bias += outside.weight[:, :, 0, 0] @ mean.flatten()
        outside.weight *= std[None]
    vae.register_to_config(scaling_factor=1.0, shift_factor=None)
    return vae


def _one_scale(autoencoder: DiffusersAutoencoder) -> bool:
    """Whether one number scales all channels of the latents, as the pipeline has it."""
    return not autoencoder.mean.any() and bool((autoencoder.std == autoencoder.std[0]).all())


def _parts(model: Pipeline) -> tuple[DiT, DiffusersAutoencoder]:
    """Network and autoencoder of a model that the pipeline has a place for; others are refused."""
    network, autoencoder = official.paper(model, "diffusers' DiTPipeline"), model.autoencoder
    if not 0 < network.input.classes <= NULL:
        raise UserError(f"diffusers' DiTPipeline takes 1 to {NULL} classes; this model has {network.input.classes}")
    if network.config.mlp_ratio != 4:
        raise UserError(f"diffusers' DiT has an MLP ratio of 4; this model has {network.config.mlp_ratio:g}")
    if not isinstance(autoencoder, DiffusersAutoencoder) or not autoencoder.stochastic:
        kind = "an AutoencoderTiny" if isinstance(autoencoder, DiffusersAutoencoder) else "none: it works on pixels"
        raise UserError(f"diffusers' DiTPipeline decodes with an AutoencoderKL; this model has {kind}")
    config = autoencoder.vae.config
    if not _one_scale(autoencoder) and not (
        config.get("use_quant_conv", True) and config.get("use_post_quant_conv", True)
    ):
        raise UserError(
            "diffusers' DiTPipeline scales latents by one number, and this model's VAE has no 1x1 convolutions to put "
            "the statistics of its channels into"
        )
    return network, autoencoder


def _names(depth: int) -> Iterator[tuple[str, str]]:
    """Each tensor's name in the public layout and in the pipeline, but those of queries, keys and values.

    Every block of the pipeline carries a copy of the embeddings, so that some of the public names come more than once.
    """
    for n in range(depth):
        block = f"transformer_blocks.{n}"
        yield TABLE, f"{block}.norm1.emb.{THEIR_TABLE}"
        for kind in KINDS:
            for public, theirs in EMBEDDING.items():
                yield f"{public}.{kind}", f"{block}.norm1.emb.{theirs}.{kind}"
            for public, theirs in BLOCK.items():
                yield f"blocks.{n}.{public}.{kind}", f"{block}.{theirs}.{kind}"
    for kind in KINDS:
        for public, theirs in ONCE.items():
            yield f"{public}.{kind}", f"{theirs}.{kind}"


def _qkv(depth: int) -> Iterator[tuple[str, list[str]]]:
    """The name of queries, keys and values in the public layout, where they are one, and their names in the pipeline."""
    for n in range(depth):
        for kind in KINDS:
            yield f"blocks.{n}.attn.qkv.{kind}", [f"transformer_blocks.{n}.attn1.{name}.{kind}" for name in QKV]


def _theirs(tensors: dict[str, Tensor], depth: int) -> dict[str, Tensor]:
    """The pipeline's tensors of those in the public layout."""
    found = {theirs: tensors[public] for public, theirs in _names(depth)}
    for public, names in _qkv(depth):
        found |= dict(zip(names, tensors[public].chunk(3), strict=True))
    return {name: tensor.float().cpu().contiguous().clone() for name, tensor in found.items()}


def _public(theirs: dict[str, Tensor], depth: int) -> dict[str, Tensor]:
    """The public layout's tensors of the pipeline's.

    Raises:
        ValueError: its blocks have embeddings of their own, where ditlab has one for all.
    """
    tensors: dict[str, Tensor] = {}
    for public, name in _names(depth):
        if not torch.equal(theirs[name], tensors.setdefault(public, theirs[name])):
            raise ValueError(f"{name} is not that of the first block")
    for public, names in _qkv(depth):
        tensors[public] = torch.cat([theirs[name] for name in names])
    return {name: tensor.float() for name, tensor in tensors.items()}


def _record(path: Path) -> dict[str, Any]:
    try:
        record = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read ({error}); a pipeline's folder has it") from error
    if not isinstance(record, dict):
        raise UserError(f"{path} is not a record")
    return record
