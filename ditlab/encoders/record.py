"""Autoencoders as files: a JSON record, and the weights of those that were trained here."""

from __future__ import annotations

import json
from pathlib import Path

import safetensors.torch

from ditlab.encoders.autoencoder import KINDS, Autoencoder
from ditlab.encoders.vae import build_kl, load_pretrained
from ditlab.errors import UserError, nearest
from ditlab.runtime import files
from ditlab.runtime.weights import load_weights

WEIGHTS, RECORD = "autoencoder.safetensors", "autoencoder.json"


def restore(record: dict[str, object]) -> Autoencoder:
    """The autoencoder a ``record`` describes; weights that ship are still to be loaded into it.

    Raises:
        UserError: unknown kind, fields missing or unfit, or a pretrained one that is not to be had.
    """
    try:
        kind = record.get("kind")
        if kind == "pixels":
            channels = int(record["channels"])  # type: ignore[call-overload]
            return Autoencoder(channels, channels, 1)
        if kind == "kl":
            return build_kl(record["config"])  # type: ignore[arg-type]
        if kind == "pretrained":
            return load_pretrained(str(record["path"]), str(record.get("subfolder", "")))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UserError(
            f"not an autoencoder record of this version of ditlab ({type(error).__name__}: {error})"
        ) from error
    raise UserError(f"unknown autoencoder {kind!r}; {nearest(str(kind), KINDS)}")


def save(autoencoder: Autoencoder, folder: Path) -> None:
    """Write the autoencoder, statistics included, into ``folder`` as two files.

    Raises:
        UserError: the disk is full or the folder cannot be written.
    """
    weights = {name: tensor.detach().cpu().contiguous() for name, tensor in autoencoder.state_dict().items()}
    files.write_file(folder / WEIGHTS, safetensors.torch.save(weights))
    files.write_file(folder / RECORD, json.dumps(autoencoder.record(), indent=2) + "\n")


def load(folder: Path) -> Autoencoder:
    """Read what ``save`` wrote.

    Raises:
        UserError: nothing there, or files that do not fit together.
    """
    try:
        record = json.loads((folder / RECORD).read_text())
        weights = safetensors.torch.load((folder / WEIGHTS).read_bytes())
    except FileNotFoundError as error:
        raise UserError(f"no trained autoencoder in {folder}: make one with `ditlab autoencoder RECIPE`") from error
    except (OSError, ValueError, safetensors.SafetensorError) as error:
        raise UserError(f"the autoencoder in {folder} cannot be read ({error}); train it anew") from error
    autoencoder = restore(record)
    load_weights(autoencoder, weights, folder / WEIGHTS)
    return autoencoder.eval()
