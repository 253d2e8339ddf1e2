"""Read and write checkpoints in the public DiT layout; read those of SiT, REPA and LightningDiT.

The layout is a dictionary of tensors in a .pt or .safetensors file. It does not contain the number of heads (``settings``).
"""

from __future__ import annotations

import io
import re
from dataclasses import dataclass, field
from pathlib import Path

import safetensors.torch
import torch
from torch import Tensor

from ditlab.diffusion import DiffusionConfig
from ditlab.errors import UserError
from ditlab.interop.architectures import identify
from ditlab.interop.checkpoint import Weights, read_weights
from ditlab.interop.flow_layouts import ROPE, drop_variance, fold_norms, rename_swiglu, reorder_rotary, reverse_time
from ditlab.interop.settings import Choices, classes_of, diffusion_of, flag, heads_of, process_of
from ditlab.models import DiT, DiTConfig, LatentSpec, Network, labelled
from ditlab.models.layout import sincos_positions
from ditlab.pipelines import Pipeline, SampleConfig
from ditlab.runtime import files
from ditlab.runtime.weights import check_weights

# Parts of tensor names: in the public layout, and in ditlab.
NAMES = {
    "x_embedder.proj": "patch_embedding",
    "t_embedder.mlp": "timestep_embedding.mlp",
    "y_embedder.embedding_table": "condition_embedding.labels.table",
    "attn.qkv": "attention.qkv",
    "attn.proj": "attention.projection",
    "mlp.fc1": "mlp.up",
    "mlp.fc2": "mlp.down",
    "attn.q_norm": "attention.norm_q",
    "attn.k_norm": "attention.norm_k",
    "adaLN_modulation.1": "modulation",
    "final_layer": "final_layer",
}
POSITIONS = "pos_embed"
MARKS = re.compile(r"\.(norm1|norm_final|w12)\.|^feat_rope\.")  # of LightningDiT, in names of tensors
LATER = (
    "mlp",
    "norm",
    "positions",
    "qk_norm",
    "modulation_rank",
    "block_embeddings",
)  # options of blocks that the layout has no place for


def renamed(name: str, table: dict[str, str]) -> str:
    """A tensor's name with the parts replaced that a table has."""
    for old, new in table.items():
        name = name.replace(old, new)
    return name


@dataclass(frozen=True)
class Imported:
    """A network of other code: in evaluation mode, its process, notes for the user, and how it samples by default.

    ``null`` is off where guidance needs the features of an empty prompt, which are not in the checkpoint.
    """

    network: DiT
    diffusion: DiffusionConfig
    notes: tuple[str, ...] = ()
    defaults: SampleConfig = field(default_factory=SampleConfig)
    null: bool = True


def read(path: str | Path, heads: int = 0) -> DiT:
    """A DiT in evaluation mode from a checkpoint in the public layout: a .pt, read without running code, or a .safetensors.

    Depth, width, patch, channels, classes and image size are inferred from the tensors; 0 ``heads`` are those of the
    settings in the file, of the paper's model of the same width, or a guess, which ``imported`` notes. Call it as
    ``network(x, t, Condition.of_labels(labels))`` with t from 0 to 999, or from 0, data, to 1 for rectified flow.
    UserError: a missing file, a pickle that contains code, or another architecture.
    """
    return imported(read_weights(Path(path)), Path(path), Choices(heads)).network


def imported(weights: Weights, path: Path, choices: Choices) -> Imported:
    """A DiT from tensors in the public layout or that of SiT, REPA or LightningDiT; ``path`` is for its errors."""
    tensors, settings, notes = dict(weights.tensors), weights.settings, list(weights.notes)
    unused = [name for name in tensors if name.startswith("projectors.")]
    marks = "repa" if unused else "sit" if any(MARKS.search(name) for name in tensors) else ""
    for name in (*unused, "feat_rope.freqs_sin"):
        tensors.pop(name, None)
    notes += [f"not used: {len(unused)} tensors of REPA's projectors"] if unused else []
    try:
        kernel = tensors["x_embedder.proj.weight"]
        width, channels, patch, _ = kernel.shape
        tokens = tensors[POSITIONS].shape[1]
        table = tensors.setdefault("y_embedder.embedding_table.weight", torch.zeros(1, width))
        modulation = tensors["blocks.0.adaLN_modulation.1.weight"].shape[0]
        process, note = process_of(path, settings, marks, choices.process)
        notes.append(note)
        if process != "dit":
            drop_variance(tensors, channels, patch)
        if process == "sit":
            reverse_time(tensors)
        out = tensors["final_layer.linear.weight"].shape[0]
        rms, swiglu = fold_norms(tensors), rename_swiglu(tensors)
        inner = tensors["blocks.0.mlp.fc2.weight"].shape[1]
        blocks = [int(match[1]) for name in tensors if (match := re.match(r"blocks\.(\d+)\.", name))]
        norm = tensors.get("blocks.0.attn.q_norm.weight")
        head_width = len(norm) if norm is not None else tensors[ROPE].shape[1] if ROPE in tensors else 0
    except (KeyError, ValueError, IndexError, RuntimeError) as error:
        what = identify(tensors)
        reason = f"it is {what}" if what else f"not in the public DiT layout ({error} is missing or misshapen)"
        raise UserError(f"{path} is of another architecture: {reason}") from error
    side = round(tokens**0.5)
    if side * side != tokens or modulation != 6 * width:
        what = identify(tensors)
        shown = f"it is {what}" if what else f"{tokens} positions and {modulation / width:g} modulation vectors"
        raise UserError(f"{path} is of another architecture: {shown}")
    heads, note = heads_of(width, settings, head_width, choices.heads)
    notes.append(note)
    rotary = ROPE in tensors or flag(settings, "use_rope")
    if rotary:
        reorder_rotary(tensors, heads, path)
    classes, null, note = classes_of(len(table), settings, choices.classes, path)
    notes.append(note)
    config = DiTConfig(
        depth=max(blocks) + 1, width=width, heads=heads, patch=patch, mlp_ratio=inner * (1.5 if swiglu else 1) / width,
        mlp="swiglu" if swiglu else "gelu", norm="rms" if rms else "layer", positions="rotary" if rotary else "sincos",
        qk_norm=norm is not None, block_embeddings=any(name.startswith("block_embeddings.") for name in tensors),
    )  # fmt: skip
    latent = LatentSpec(channels, (side * patch, side * patch))
    spec = labelled(latent, classes, null=null, learned_variance=out == 2 * channels * patch**2)
    found, fixed = tensors.pop(POSITIONS).float(), sincos_positions(width, (side, side))[None]
    # Half precision rounds them by up to 0.004; learned ones are further off.
    if found.shape != fixed.shape or not torch.allclose(found, fixed, rtol=0, atol=0.005):
        raise UserError(f"{path} is of another architecture: its positions are not the fixed sine-cosine ones")
    built = DiT(config, spec)
    tensors["x_embedder.proj.weight"] = kernel.flatten(1)
    _check(tensors, built, path)
    built.load_state_dict({renamed(name, NAMES): tensor.float() for name, tensor in tensors.items()})
    diffusion = diffusion_of(process, spec.learned_variance, null)
    defaults = SampleConfig() if process == "dit" else SampleConfig("heun", 25)
    return Imported(built.eval(), diffusion, tuple(filter(None, notes)), defaults)


def _check(tensors: dict[str, Tensor], network: DiT, path: Path) -> None:
    """Raise UserError for the first tensor, by its public name, that the network lacks or the tensors lack."""
    table = {ours: theirs for theirs, ours in NAMES.items()}
    expected = {renamed(name, table): tensor for name, tensor in network.state_dict().items()}
    check_weights(expected, tensors, path, identify(tensors))


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
    if config.position_grid not in ((), tuple(side // config.patch for side in size)):
        found.append(("positions", f"interpolated from {'x'.join(map(str, config.position_grid))} patches"))
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
    tensors = {renamed(name, table): tensor.detach().clone() for name, tensor in network.state_dict().items()}
    kernel = tensors["x_embedder.proj.weight"]
    tensors["x_embedder.proj.weight"] = kernel.view(config.width, latent.channels, config.patch, config.patch)
    tensors[POSITIONS] = sincos_positions(config.width, (latent.size[0] // config.patch,) * 2)[None]
    return tensors
