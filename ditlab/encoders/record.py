"""Autoencoders by kind: built from a config, restored from a record, and saved to and loaded from a folder."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch

from ditlab.encoders.autoencoder import Autoencoder, AutoencoderConfig
from ditlab.encoders.causal import CausalAutoencoder, causal_latent_shape, new_causal
from ditlab.encoders.vae import build_kl, load_pretrained, new_kl
from ditlab.errors import UserError, nearest
from ditlab.runtime import files
from ditlab.runtime.weights import load_weights

WEIGHTS, RECORD = "autoencoder.safetensors", "autoencoder.json"


@dataclass(frozen=True)
class AutoencoderKind:
    """One kind of autoencoder."""

    build: Callable[[AutoencoderConfig, int, int], Autoencoder]  # a new one from config, image channels and seed
    restore: Callable[[dict[str, Any]], Autoencoder]  # of a record; weights stored with a model are still to be loaded
    trained: bool  # whether a recipe trains it
    latents: bool  # whether its latents are cached on disk, since encoding takes time
    # shape of the latents of images (C, H, W) or clips (C, F, H, W), without building it; None if only the loaded one knows
    latent_shape: Callable[[AutoencoderConfig, tuple[int, ...]], tuple[int, ...]] | None = None


AUTOENCODERS = {
    "pixels": AutoencoderKind(
        build=lambda config, channels, seed: Autoencoder(channels, channels, 1),
        restore=lambda record: Autoencoder(int(record["channels"]), int(record["channels"]), 1),
        trained=False,
        latents=False,
        latent_shape=lambda config, shape: shape,
    ),
    "kl": AutoencoderKind(
        build=new_kl,
        restore=lambda record: build_kl(record["config"]),
        trained=True,
        latents=True,
        latent_shape=lambda config, chw: (config.latent_channels, chw[1] // config.factor, chw[2] // config.factor),
    ),
    "causal": AutoencoderKind(
        build=new_causal,
        restore=lambda record: CausalAutoencoder(**record["config"]),
        trained=True,
        latents=True,
        latent_shape=causal_latent_shape,
    ),
    "pretrained": AutoencoderKind(
        build=lambda config, channels, seed: load_pretrained(config.path, config.subfolder),
        restore=lambda record: load_pretrained(str(record["path"]), str(record.get("subfolder", ""))),
        trained=False,
        latents=True,
    ),
}


def autoencoder_kind(name: object) -> AutoencoderKind:
    """The registry's entry of a kind; a UserError if it is unknown."""
    if not isinstance(name, str) or name not in AUTOENCODERS:
        raise UserError(f"unknown autoencoder {name!r}; {nearest(str(name), AUTOENCODERS)}")
    return AUTOENCODERS[name]


def restore(record: dict[str, Any]) -> Autoencoder:
    """The autoencoder of a ``record``; weights that are stored with a model are still to be loaded."""
    try:
        return autoencoder_kind(record.get("kind")).restore(record)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        reason = f"{type(error).__name__}: {error}"
        raise UserError(f"not an autoencoder record of this version of ditlab ({reason})") from error


def save(autoencoder: Autoencoder, folder: Path) -> None:
    """Write the autoencoder, statistics included, into ``folder`` as two files."""
    weights = {name: tensor.detach().cpu().contiguous() for name, tensor in autoencoder.state_dict().items()}
    files.write_file(folder / WEIGHTS, safetensors.torch.save(weights))
    files.write_file(folder / RECORD, json.dumps(autoencoder.record(), indent=2) + "\n")


def load(folder: Path) -> Autoencoder:
    """Read the autoencoder that ``save`` wrote; a UserError if there is none, or its files do not fit together."""
    try:
        record = json.loads((folder / RECORD).read_text())
        weights = safetensors.torch.load((folder / WEIGHTS).read_bytes())
    except FileNotFoundError as error:
        raise UserError(f"no trained autoencoder in {folder}: train one with `ditlab autoencoder RECIPE`") from error
    except (OSError, ValueError, safetensors.SafetensorError) as error:
        raise UserError(f"the autoencoder in {folder} cannot be read ({error}); train it again") from error
    autoencoder = restore(record)
    load_weights(autoencoder, weights, folder / WEIGHTS)
    return autoencoder.eval()
