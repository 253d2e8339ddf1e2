"""``ditlab import``: models from elsewhere."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from ditlab.commands.voice import say
from ditlab.flags import parse


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
    say(f"model: {folder}")
