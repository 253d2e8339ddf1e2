"""``ditlab import``, ``ditlab export`` and ``ditlab push``: models from and to other code."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from ditlab.cli.flags import parse
from ditlab.runtime.console import log


@dataclass(frozen=True)
class ImportOptions:
    """A checkpoint in the public DiT layout becomes a ditlab model."""

    checkpoint: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="CHECKPOINT")]
    """A .pt (read without running code) or .safetensors file."""
    out: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="OUT")]
    """Folder of the new model."""
    vae: str = "stabilityai/sd-vae-ft-ema"
    """The VAE its latents belong to: a folder or a hub id."""
    force: bool = False
    """Replace a model that is there already."""


def import_(arguments: list[str]) -> None:
    """Turn a public DiT checkpoint into a ditlab model."""
    options = parse(ImportOptions, arguments, "import")
    from ditlab.interop import official

    folder = official.import_checkpoint(Path(options.checkpoint), Path(options.out), options.vae, options.force)
    log(f"model: {folder}")


@dataclass(frozen=True)
class ExportOptions:
    """A model of the paper's process, for other code."""

    run: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="RUN")]
    """Run folder, or model.safetensors."""
    out: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="OUT")]
    """Folder (diffusers), or .pt or .safetensors file (official)."""
    to: Literal["diffusers", "official"] = "diffusers"
    """diffusers: a folder that DiTPipeline.from_pretrained loads. official: a checkpoint in the public DiT layout."""
    force: bool = False
    """Replace what was exported there before."""


def export(arguments: list[str]) -> None:
    """Write a model for diffusers or for the public DiT code."""
    options = parse(ExportOptions, arguments, "export")
    from ditlab.interop import diffusers_pipeline, official
    from ditlab.interop.find import find_model

    model, out = find_model(options.run), Path(options.out)
    if options.to == "official":
        official.export(model, out, options.force)
        log(f"checkpoint: {out} (it holds no autoencoder, labels' names or number of heads)")
    else:
        steps = diffusers_pipeline.export(model, out, options.force)
        log(f"pipeline: {out}; with {steps} steps, or a number that divides {steps}, it makes this model's images")


@dataclass(frozen=True)
class PushOptions:
    """A model goes to the Hugging Face hub, with a card written from its run."""

    run: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="RUN")]
    """Run folder, or model.safetensors."""
    name: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="USER/NAME")]
    """On the hub; `ditlab sample USER/NAME` and ditlab.load("USER/NAME") find it there."""
    private: bool = False
    """Only you see it."""


def push(arguments: list[str]) -> None:
    """Upload a model to the Hugging Face hub."""
    options = parse(PushOptions, arguments, "push")
    from ditlab.interop import hub

    log(f"model: {hub.push(Path(options.run), options.name, options.private)}")
