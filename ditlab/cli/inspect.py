"""``ditlab inspect``: parameters, compute and memory of a model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

import tyro

from ditlab.cli.flags import parse
from ditlab.errors import UserError


@dataclass(frozen=True)
class InspectOptions:
    """Print parameters, compute and training memory of a model."""

    model: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="MODEL")]
    """A published model such as DiT-XL/2 or ADM-256, a recipe, or a run folder."""
    image: int = 0
    """Image size in pixels of a published model; 0 is its own, 256 for latent models."""
    block: str = "adaln-zero"
    """Block design of a published DiT."""
    text: int = 0
    """Text tokens of a published DiT, in place of class labels; 0 is labels, or 32 tokens for a block of text."""
    batch: int = 256
    """Images of a training step, over all GPUs."""
    gpus: int = 1
    """GPUs that share a training step."""
    microbatch: int = 0
    """Images a GPU computes at a time; 0 is its whole share of the batch."""
    precision: Literal["bf16", "fp32"] = "bf16"
    """Precision of training."""
    activation_checkpointing: bool = False
    """Recompute activations in the backward pass."""
    json: bool = False
    """Print JSON."""


def inspect(arguments: list[str]) -> None:
    """Print parameters, GMACs and training memory of a model."""
    options = parse(InspectOptions, arguments, "inspect")
    for name, least in (("batch", 1), ("gpus", 1), ("microbatch", 0), ("text", 0)):
        if getattr(options, name) < least:
            raise UserError(f"--{name} {getattr(options, name)} must be {least} or more")
    from ditlab.recipes import inspect_model
    from ditlab.train import TrainConfig

    names = ("batch", "microbatch", "precision", "activation_checkpointing")
    train = TrainConfig(**{name: getattr(options, name) for name in names})
    inspect_model(options.model, options.image, options.block, train, options.gpus, options.json, options.text)
