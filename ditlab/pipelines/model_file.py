"""The model file: ``model.safetensors`` and ``model.json``, everything that sampling needs.

``model.json``, format 2: ``network`` (kind and configuration), ``latent`` (channels, size), ``conditions``, ``process``,
``autoencoder``, ``text_encoder``, ``prompts``, ``sample`` (defaults), ``class_names``, ``class_counts``, ``facts``. Format 1
is read.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import safetensors.torch
import torch

from ditlab.diffusion import DiffusionConfig, GuidanceConfig
from ditlab.encoders import Autoencoder, TextEncoder, restore_text_encoder
from ditlab.encoders.record import restore
from ditlab.errors import UserError, nearest
from ditlab.models import LatentSpec, Network, NetworkSpec, build
from ditlab.models.condition_embedding import conditions_from_record, conditions_to_record
from ditlab.models.network import from_record, rename_weights, to_record
from ditlab.pipelines.sampling import SampleConfig
from ditlab.pipelines.shipped import locate, models_near
from ditlab.runtime import files
from ditlab.runtime.weights import load_weights

WEIGHTS, RECORD = "model.safetensors", "model.json"
FORMAT = 2


@dataclass
class ModelParts:
    """The parts of a trained model.

    Attributes:
        network: DiT or U-Net.
        process: the diffusion process it was trained for.
        autoencoder: from latents to pixels.
        names: of the classes, in label order; empty where they have none.
        defaults: how it is sampled by default.
        facts: provenance: recipe, images trained on.
        counts: training images of each class, in label order; empty where they are not known.
        text: the encoder of prompts; None without one.
        prompts: captions of held-out images.
    """

    network: Network
    process: DiffusionConfig
    autoencoder: Autoencoder
    names: Sequence[str] = ()
    defaults: SampleConfig = field(default_factory=SampleConfig)
    facts: dict[str, object] = field(default_factory=dict)
    counts: Sequence[int] = ()
    text: TextEncoder | None = None
    prompts: Sequence[str] = ()


def save(parts: ModelParts, folder: Path, half: bool = False) -> None:
    """Write ``model.safetensors`` and ``model.json`` into ``folder``; a pretrained autoencoder is referred to by its path.

    Args:
        parts: the model.
        folder: the destination.
        half: write weights in float16; they are float32 again when they are loaded.

    Raises:
        UserError: the disk is full or the folder cannot be written.
    """
    spec = parts.network.spec
    tensors = {f"network.{name}": tensor for name, tensor in parts.network.state_dict().items()}
    for name, tensor in parts.autoencoder.state_dict().items():
        if parts.autoencoder.shipped or name in ("mean", "std"):
            tensors[f"autoencoder.{name}"] = tensor
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    data = safetensors.torch.save({name: tensor.half() if half else tensor for name, tensor in tensors.items()})
    record = {
        "format": FORMAT,
        "network": to_record(parts.network.config),
        "latent": asdict(spec.latent),
        "conditions": conditions_to_record(spec.conditions),
        "process": asdict(parts.process),
        "autoencoder": parts.autoencoder.record(),
        "text_encoder": None if parts.text is None else parts.text.record(),
        "prompts": list(parts.prompts),
        "sample": asdict(parts.defaults),
        "class_names": list(parts.names),
        "class_counts": list(parts.counts),
        "facts": parts.facts,
    }
    files.write_file(folder / RECORD, json.dumps(record, indent=2) + "\n")
    files.write_file(folder / WEIGHTS, data)


def load(path: str | Path) -> ModelParts:
    """Read a run folder, a ``model.safetensors`` with its ``model.json`` next to it, or a shipped model by its name.

    Raises:
        UserError: no model there, a damaged file, or weights of another architecture.
    """
    path = locate(path)
    folder = path.parent if path.suffix == ".safetensors" else path
    weights_file = path if path.suffix == ".safetensors" else path / WEIGHTS
    if not (folder / RECORD).exists() or not weights_file.exists():
        raise UserError(
            f"no model in {path}: expected a run folder with {WEIGHTS} and {RECORD}, or a shipped model; "
            f"{nearest(str(path), models_near(path))}"
        )
    try:
        record = json.loads((folder / RECORD).read_text())
        tensors = safetensors.torch.load(weights_file.read_bytes())
    except (OSError, ValueError, safetensors.SafetensorError) as error:
        raise UserError(
            f"the model in {folder} cannot be read ({error}); sample another run or train it again"
        ) from error
    try:
        format_ = record["format"]
        if format_ not in (1, FORMAT):
            raise UserError(
                f"{folder / RECORD} has format {format_}; this version of ditlab reads formats 1 and {FORMAT}"
            )
        record = from_format_1(record) if format_ == 1 else record
        parts = _build(record)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        reason = f"no field {error}" if isinstance(error, KeyError) else str(error)
        raise UserError(f"{folder / RECORD} is not a model record of this version of ditlab ({reason})") from error
    load_weights(parts.network, rename_weights(_within(tensors, "network.")), weights_file)
    stored = _within(tensors, "autoencoder.")
    if parts.autoencoder.shipped:
        load_weights(parts.autoencoder, stored, weights_file)
    else:
        _load_statistics(parts.autoencoder, stored, weights_file)
    parts.network.eval()
    parts.autoencoder.eval()
    return parts


def _build(record: Mapping[str, Any]) -> ModelParts:
    """A model from a record of format 2, its weights still to be loaded."""
    process = DiffusionConfig(**record["process"])
    process.check()
    latent = LatentSpec(int(record["latent"]["channels"]), tuple(record["latent"]["size"]))
    spec = NetworkSpec(latent, conditions_from_record(record["conditions"]), process.learned_variance)
    sample = dict(record["sample"])
    defaults = SampleConfig(**{**sample, "guidance": GuidanceConfig(**sample["guidance"])})
    network = build(from_record(record["network"]), spec)
    return ModelParts(
        network, process, restore(record["autoencoder"]), record["class_names"], defaults, record["facts"],
        [int(count) for count in record.get("class_counts", ())], restore_text_encoder(record["text_encoder"]),
        [str(prompt) for prompt in record.get("prompts", ())],
    )  # fmt: skip


def from_format_1(record: Mapping[str, Any]) -> dict[str, Any]:
    """A record of format 2 from one of format 1, written before version 0.2.

    Raises:
        KeyError: a field is missing.
    """
    taken, process = record["network"]["input"], dict(record["diffusion"])
    process["condition_dropout"] = process.pop("label_dropout")
    return {
        "format": FORMAT,
        "network": record["network"]["config"],
        "latent": {"channels": taken["channels"], "size": [taken["height"], taken["width"]]},
        "conditions": [
            {"kind": "labels", "name": "labels", "classes": taken["classes"], "null": taken.get("null_class", True)}
        ],
        "process": process,
        "autoencoder": record["autoencoder"],
        "text_encoder": None,
        "sample": record["sample"],
        "class_names": record["names"],
        "facts": record["facts"],
    }


def _load_statistics(autoencoder: Autoencoder, tensors: dict[str, torch.Tensor], source: Path) -> None:
    """Load the mean and std of an autoencoder whose weights are stored elsewhere."""
    channels = autoencoder.latent_channels
    if any(name not in tensors or tensors[name].numel() != channels for name in ("mean", "std")):
        raise UserError(f"{source} lacks the mean and std of its autoencoder's {channels} latent channels")
    autoencoder.set_statistics(tensors["mean"], tensors["std"])


def _within(tensors: dict[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
