"""Read and write folders of diffusers' DiTPipeline.

Weights absorb the differences, so that both make the same images from the same noise:

- The pipeline scales latents by one number, ditlab by a mean and a standard deviation per channel. Those are folded into the
  1x1 convolutions on both sides of the latent.
- Its null class is number 1000, whatever the data. The label table is extended to 1001 rows.
- Its 128 timestep frequencies end at 1/10000, ditlab's and the public code's just before it; see ``refit``.
"""

from __future__ import annotations

import copy
import json
import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor
from torch.nn import functional as F

from ditlab.encoders import DiffusersAutoencoder
from ditlab.errors import UserError
from ditlab.interop import official
from ditlab.interop.assemble import assemble, load_vae
from ditlab.interop.checkpoint import Weights, folder_weights
from ditlab.interop.settings import Choices
from ditlab.models import Network
from ditlab.models.layout import sincos_positions
from ditlab.pipelines import Pipeline, SampleConfig
from ditlab.runtime import files

INDEX, CONFIG, WEIGHTS = "model_index.json", "config.json", "diffusion_pytorch_model.safetensors"
TRANSFORMERS = ("DiTTransformer2DModel", "Transformer2DModel")  # today's class of DiT, and that of older versions
NULL = 1000  # the pipeline's label of the null class
STEPS = (1000, 500, 250, 125, 50, 25, 10, 5)  # numbers of timesteps that refit tries to reproduce
TOLERANCE = 2e-5  # of a refitted embedding, relative to its largest entry
SCHEDULER = {
    "num_train_timesteps": 1000, "beta_start": 1e-4, "beta_end": 0.02, "beta_schedule": "linear", "prediction_type": "epsilon",
    "trained_betas": None,
}  # fmt: skip
SAMPLING = {"clip_sample": False, "set_alpha_to_one": True, "steps_offset": 0, "timestep_spacing": "leading"}
# Names in the public layout and in the pipeline: of tensors in every block, and of the others.
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
    """Write a folder for ``DiTPipeline.from_pretrained``; ``force`` replaces an existing pipeline.

    Returns the number of sampling steps at which, and at whose divisors, the timestep embeddings are exact (``refit``).
    UserError: the model is no adaln-zero DiT of the paper's process on latents of an AutoencoderKL, or ``out`` is not empty.
    """
    network, autoencoder = _parts(model)
    if out.exists() and not (force and (out / INDEX).is_file()) and not (out.is_dir() and not any(out.iterdir())):
        advice = "use --force to replace it" if (out / INDEX).is_file() else "choose another folder"
        raise UserError(f"{out} already exists; {advice}")
    tensors = official.state_dict(network)
    steps = refit(tensors, ours=False)
    config, latent, classes = network.config, network.spec.latent, network.spec.classes
    table = torch.zeros(NULL + 1, config.width)
    table[:classes], table[NULL] = tensors[TABLE][:-1], tensors[TABLE][-1]
    tensors[TABLE] = table
    transformer = {
        "_class_name": "DiTTransformer2DModel", "num_attention_heads": config.heads,
        "attention_head_dim": config.width // config.heads, "num_layers": config.depth, "patch_size": config.patch,
        "in_channels": latent.channels, "out_channels": network.spec.channels_out,
        "sample_size": latent.size[0], "num_embeds_ada_norm": NULL, "activation_fn": "gelu-approximate", "attention_bias": True,
        "norm_type": "ada_norm_zero", "norm_elementwise_affine": False, "norm_eps": 1e-6,
    }  # fmt: skip
    names = dict(enumerate(model.names)) or {label: str(label) for label in range(classes)}
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
        records = {"transformer/config.json": transformer, "scheduler/scheduler_config.json": scheduler, INDEX: index}
        for name, record in records.items():
            (temporary / name).write_text(json.dumps(record, indent=2) + "\n")
    return steps


def read(folder: Path) -> Pipeline:
    """Read a folder of diffusers' DiTPipeline; by default the model samples with 50 DDIM steps, as the pipeline does.

    UserError: the pipeline is missing, or has features that ditlab does not support.
    """
    index = record(folder / INDEX)
    if index.get("_class_name") != "DiTPipeline":
        raise UserError(f"{folder} holds a {index.get('_class_name')}; ditlab reads a DiTPipeline, and folders of VAEs")
    check_scheduler(folder)
    names = index.get("id2label") or {}
    known = [names.get(str(label)) for label in range(len(names))]
    found = read_transformer(folder / "transformer", len(known) if None not in known else 0)
    labels = [str(name) for name in known] if len(known) == found.network.spec.classes else []
    return assemble(found, load_vae(found.network, str(folder), "vae"), labels, SampleConfig("ddim", 50), folder.name)


def check_scheduler(folder: Path) -> None:
    """Raise UserError for a pipeline whose process is not the paper's."""
    scheduler = record(folder / "scheduler" / "scheduler_config.json")
    for name, value in SCHEDULER.items():
        if scheduler.get(name, value) != value:
            raise UserError(f"{folder} has a scheduler with {name} {scheduler[name]}; ditlab's linear-beta has {value}")


def read_transformer(folder: Path, named: int = 0) -> official.Imported:
    """The network in a folder of a DiTTransformer2DModel: one file of weights, shards, or a variant such as fp16.

    Of ``named`` classes with names the rows of the others are dropped. UserError: it is another network, or its files do
    not fit together.
    """
    config = record(folder / CONFIG)
    check_transformer(config, folder)
    weights = folder_weights(folder)
    theirs = weights.tensors
    try:
        depth, heads, side, patch = (
            int(config[name]) for name in ("num_layers", "num_attention_heads", "sample_size", "patch_size")
        )
        width = heads * int(config["attention_head_dim"])
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{folder / CONFIG} does not describe a transformer ({error})") from error
    blocks = {match[1] for name in theirs if (match := re.match(r"transformer_blocks\.(\d+)\.", name))}
    if len(blocks) != depth:
        raise UserError(f"{folder / CONFIG} says {depth} layers (num_layers), its weights have {len(blocks)}")
    missing = [name for name in _all_names(depth) if name not in theirs]
    if missing:
        raise UserError(f"the weights in {folder} lack the tensor {missing[0]!r}")
    tensors, prefixes = _public(theirs, depth)
    tensors[official.POSITIONS] = sincos_positions(width, (side // patch, side // patch))[None]
    for prefix in prefixes:
        table = tensors[prefix + TABLE]
        if named and named < len(table):  # the other rows are of unnamed labels
            tensors[prefix + TABLE] = torch.cat([table[:named], table[-1:]])
        refit(tensors, ours=True, prefix=prefix)
    settings = {"num_heads": heads, "num_classes": len(tensors[TABLE]) - 1}
    return official.imported(Weights(tensors, settings), folder, Choices(process="dit"))


def check_transformer(config: dict[str, Any], folder: Path) -> None:
    """Raise UserError, which names the network, for the config of another one than diffusers' DiT."""
    name, norm = config.get("_class_name"), config.get("norm_type", "ada_norm_zero")
    if name not in TRANSFORMERS or norm != "ada_norm_zero":
        about = f", with norm_type {norm}" if norm != "ada_norm_zero" else ""
        raise UserError(f"{folder} holds a {name}{about}; of diffusers' networks ditlab reads DiTTransformer2DModel")


def refit(tensors: dict[str, Tensor], ours: bool, prefix: str = "") -> int:
    """Change the second Linear of the timestep embedding so that its outputs are the same with the other frequencies.

    Sines of other frequencies are not linear combinations of the given ones, but weights of the hidden layer's D outputs and a
    bias can reproduce the embeddings of any D + 1 timesteps exactly. The smallest change that does so is used, for as many
    evenly spaced timesteps as possible (all 1000 in DiT-XL, 250 in DiT-S).

    ``tensors`` are in the public layout and changed: with ``ours`` to ditlab's frequencies, otherwise to diffusers'.
    ``prefix`` comes before the names of the embedding's. Returns the number of evenly spaced timesteps, from 0, that are
    exact; those of any divisor of it are too.
    """
    inner, outer = (f"{prefix}t_embedder.mlp.{place}" for place in (0, 2))
    first, bias = (tensors[f"{inner}.{kind}"].double() for kind in KINDS)
    second, offset = (tensors[f"{outer}.{kind}"].double() for kind in KINDS)
    half = first.shape[1] // 2

    def hidden(intervals: int) -> Tensor:
        frequencies = torch.exp(-math.log(10000) * torch.arange(half, dtype=torch.float32) / intervals)
        angles = torch.arange(1000, dtype=torch.float32)[:, None] * frequencies  # rounded as in both networks
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
            if off <= TOLERANCE * wanted.abs().max():
                tensors[f"{outer}.weight"] = found[:-1].T.contiguous()
                tensors[f"{outer}.bias"] = found[-1].clone()
                return steps
    raise UserError("the timestep embedding has too few distinct values to be converted")


def scaled(autoencoder: DiffusersAutoencoder) -> Any:
    """The VAE with its latent statistics folded in, so that its latents are normalised."""
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
    """Whether one number scales all latent channels, as in the pipeline."""
    return not autoencoder.mean.any() and bool((autoencoder.std == autoencoder.std[0]).all())


def _parts(model: Pipeline) -> tuple[Network, Any]:
    """Network and autoencoder of a model that the pipeline supports; others are refused."""
    network = official.paper(model, "diffusers' DiTPipeline")
    autoencoder: Any = model.autoencoder  # with a VAE of diffusers if it is stochastic
    classes = network.spec.classes
    if not 0 < classes <= NULL:
        raise UserError(f"diffusers' DiTPipeline takes 1 to {NULL} classes; this model has {classes}")
    if network.config.mlp_ratio != 4:
        raise UserError(f"diffusers' DiT has an MLP ratio of 4; this model has {network.config.mlp_ratio:g}")
    if not autoencoder.stochastic:
        kind = autoencoder.architecture()["kind"]
        raise UserError(f"diffusers' DiTPipeline decodes with an AutoencoderKL; this model's latents are of {kind}")
    convolutions = all(autoencoder.vae.config.get(f"use_{name}_conv", True) for name in ("quant", "post_quant"))
    if not convolutions and not _one_scale(autoencoder):
        raise UserError(
            "diffusers' DiTPipeline scales latents by one number, and this model's VAE has no 1x1 convolutions to put "
            "the statistics of its channels into"
        )
    return network, autoencoder


def _names(depth: int) -> Iterator[tuple[str, str]]:
    """Names in the public layout and in the pipeline, except those of queries, keys and values."""
    for n in range(depth):
        block = f"transformer_blocks.{n}"
        yield TABLE, f"{block}.norm1.emb.{THEIR_TABLE}"  # each block has a copy of the embeddings
        for kind in KINDS:
            for public, theirs in EMBEDDING.items():
                yield f"{public}.{kind}", f"{block}.norm1.emb.{theirs}.{kind}"
            for public, theirs in BLOCK.items():
                yield f"blocks.{n}.{public}.{kind}", f"{block}.{theirs}.{kind}"
    for kind in KINDS:
        for public, theirs in ONCE.items():
            yield f"{public}.{kind}", f"{theirs}.{kind}"


def _qkv(depth: int) -> Iterator[tuple[str, list[str]]]:
    """The name of queries, keys and values, one tensor, in the public layout, and their names in the pipeline."""
    for n in range(depth):
        for kind in KINDS:
            yield f"blocks.{n}.attn.qkv.{kind}", [f"transformer_blocks.{n}.attn1.{name}.{kind}" for name in QKV]


def _theirs(tensors: dict[str, Tensor], depth: int) -> dict[str, Tensor]:
    """From tensors of the public layout to those of the pipeline."""
    found = {theirs: tensors[public] for public, theirs in _names(depth)}
    for public, names in _qkv(depth):
        found |= dict(zip(names, tensors[public].chunk(3), strict=True))
    return {name: tensor.float().cpu().contiguous().clone() for name, tensor in found.items()}


def _all_names(depth: int) -> list[str]:
    return [theirs for _, theirs in _names(depth)] + [name for _, names in _qkv(depth) for name in names]


def _public(theirs: dict[str, Tensor], depth: int) -> tuple[dict[str, Tensor], list[str]]:
    """From tensors of the pipeline to those of the public layout, and the prefixes of embeddings in it.

    Where training has changed the embeddings of blocks apart, those after the first block's are ``block_embeddings.N``.
    """
    tensors, own = dict[str, Tensor](), dict[str, Tensor]()
    for public, name in _names(depth):
        tensors.setdefault(public, theirs[name])
        if ".norm1.emb." in name and (block := int(name.split(".")[1])):
            own[f"block_embeddings.{block - 1}.{public}"] = theirs[name]
    for public, names in _qkv(depth):
        tensors[public] = torch.cat([theirs[name] for name in names])
    shared = all(torch.equal(tensor, tensors[name.split(".", 2)[2]]) for name, tensor in own.items())
    prefixes = ["", *(f"block_embeddings.{block}." for block in range(0 if shared else depth - 1))]
    found = tensors if shared else {**tensors, **own}
    return {name: tensor.float() for name, tensor in found.items()}, prefixes


def record(path: Path) -> dict[str, Any]:
    """The content of a JSON file of a pipeline; UserError if it is missing or no object."""
    try:
        record = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read ({error}); a pipeline folder contains it") from error
    if not isinstance(record, dict):
        raise UserError(f"{path} is not a JSON object")
    return record
