"""``ditlab import``, ``ditlab export`` and ``ditlab push``: models from and to other tools."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from ditlab.cli.flags import parse
from ditlab.runtime.console import log


@dataclass(frozen=True)
class ImportOptions:
    """Convert a checkpoint of DiT, SiT, REPA, LightningDiT, PixArt or diffusers to a ditlab model."""

    checkpoint: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="CHECKPOINT")]
    """A .safetensors or .pt file (of a .pt only tensors are loaded, no code runs), a folder of a diffusers DiT or PixArt
    pipeline or of its transformer, or a hub id."""
    out: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="OUT")]
    """Folder for the new model."""
    vae: str = ""
    """The VAE that its latents come from: a folder or a hub id, or `pixels` for a network of pixels. Empty: the pipeline's
    own, else stabilityai/sd-vae-ft-ema."""
    text: str = ""
    """The text encoder of a network of prompts: a folder or a hub id, such as DeepFloyd/t5-v1_1-xxl. Empty: the pipeline's
    own, else none."""
    heads: int = 0
    """Attention heads. 0: from the settings in the checkpoint, else a guess, which is printed."""
    classes: int = 0
    """Classes, without the null class. 0: from the settings in the checkpoint, else from the label table's rows."""
    process: Literal["auto", "dit", "sit", "repa"] = "auto"
    """What it was trained for. dit: 1000 steps of linear beta, epsilon. sit: rectified flow with data at t = 1, as SiT and
    LightningDiT. repa: with data at t = 0. auto: from the checkpoint."""
    force: bool = False
    """Overwrite an existing model."""


def import_(arguments: list[str]) -> None:
    """Convert a checkpoint of other code to a ditlab model."""
    options = parse(ImportOptions, arguments, "import")
    from ditlab.interop.importing import import_model
    from ditlab.interop.settings import Choices

    choices = Choices(options.heads, options.classes, options.process)
    folder = import_model(
        options.checkpoint, Path(options.out), options.vae, choices, text=options.text, force=options.force, log=log
    )
    log(f"model: {folder}")


@dataclass(frozen=True)
class ExportOptions:
    """Write a model trained with the paper's diffusion process for other tools."""

    run: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="RUN")]
    """A run folder or a model.safetensors."""
    out: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="OUT")]
    """A folder for diffusers; a .pt or .safetensors file for official."""
    to: Literal["diffusers", "official"] = "diffusers"
    """diffusers: a folder that DiTPipeline.from_pretrained loads. official: a checkpoint in the public DiT layout."""
    force: bool = False
    """Overwrite an earlier export."""


def export(arguments: list[str]) -> None:
    """Convert a model for diffusers or for the public DiT code."""
    options = parse(ExportOptions, arguments, "export")
    from ditlab.interop import diffusers_pipeline, official
    from ditlab.interop.find import find_model

    model, out = find_model(options.run), Path(options.out)
    if options.to == "official":
        official.export(model, out, options.force)
        log(f"checkpoint: {out} (without the autoencoder, the label names and the number of heads)")
    else:
        steps = diffusers_pipeline.export(model, out, options.force)
        log(f"pipeline: {out}; same samples as this model with {steps} steps or a divisor of {steps}")


@dataclass(frozen=True)
class PushOptions:
    """Upload a model to the Hugging Face hub, with a model card written from its run."""

    run: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="RUN")]
    """A run folder or a model.safetensors."""
    name: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="USER/NAME")]
    """Name on the hub; `ditlab sample USER/NAME` and ditlab.load("USER/NAME") download it."""
    private: bool = False
    """Make the repository private."""


def push(arguments: list[str]) -> None:
    """Upload a model to the Hugging Face hub."""
    options = parse(PushOptions, arguments, "push")
    from ditlab.interop import hub

    log(f"model: {hub.push(Path(options.run), options.name, options.private)}")
