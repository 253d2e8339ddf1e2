"""``ditlab inspect``: what a model is made of and what it costs."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Annotated, Literal

import tyro

from ditlab.cli.flags import parse


@dataclass(frozen=True)
class InspectOptions:
    """What a model is made of and what it costs."""

    model: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="MODEL")]
    """A model of the paper, as DiT-XL/2 or ADM-256; a recipe; or a run folder."""
    image: int = 0
    """Side of the image in pixels, for models of the paper; 0 is their own, 256 for those on latents."""
    block: str = "adaln-zero"
    """Block design (models of the paper)."""
    batch: int = 256
    """Images a training step, over all GPUs."""
    gpus: int = 1
    """GPUs that share a training step."""
    microbatch: int = 0
    """Images a GPU computes at a time; 0 is its whole share of the batch."""
    precision: Literal["bf16", "fp32"] = "bf16"
    """Of training."""
    activation_checkpointing: bool = False
    """Training computes activations again going back."""
    json: bool = False
    """Print JSON."""


def inspect(arguments: list[str]) -> None:
    """Parts, parameters, GMACs and memory of a model."""
    options = parse(InspectOptions, arguments, "inspect")
    from ditlab.recipes import inspect_model

    inspect_model(**asdict(options))
