"""``ditlab train``, ``autoencoder`` and ``encode``: run a recipe, or one stage of it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from ditlab.runtime.console import main_process_log

if TYPE_CHECKING:
    from ditlab.cli.recipe_options import AutoencoderOptions, RecipeOptions
    from ditlab.recipes import RunContext


def _configured(options: RecipeOptions | AutoencoderOptions, words: list[str]) -> tuple[Any, RunContext]:
    """The recipe with its open settings chosen for the machine, and the context that it runs in."""
    from ditlab.recipes import RunContext, autoconfigure
    from ditlab.runtime.device import select_device
    from ditlab.runtime.distributed import join

    processes = join(options.recipe.train.timeout)
    device, log = select_device(options.device, processes), main_process_log(processes)
    context = RunContext(Path(options.out), device, log, processes, options.profile)
    open_size = words[0] == "folder"
    open_model = open_size and not any(word.startswith(("--model", "--init")) for word in words)
    return autoconfigure(options.recipe, device, log, open_size, open_model, context.out), context


def train(arguments: list[str]) -> None:
    """Train a recipe; the same command resumes an interrupted run."""
    from ditlab.cli.recipe_options import recipe_options
    from ditlab.recipes import train_recipe

    options, _ = recipe_options(arguments, "train")
    train_recipe(*_configured(options, arguments))


def autoencoder(arguments: list[str]) -> None:
    """Train only the autoencoder of a recipe."""
    from ditlab.cli.recipe_options import autoencoder_options, recipe_options
    from ditlab.recipes import train_autoencoder, train_own_autoencoder

    if trained := autoencoder_options(arguments):
        train_autoencoder(*_configured(trained, arguments))
    else:
        options, _ = recipe_options(arguments, "autoencoder")
        train_own_autoencoder(*_configured(options, arguments))


def encode(arguments: list[str]) -> None:
    """Encode the images of a recipe to latents before training."""
    from ditlab.cli.recipe_options import recipe_options
    from ditlab.recipes import encode_latents

    options, _ = recipe_options(arguments, "encode")
    recipe, context = _configured(options, arguments)
    context.log(f"latents: {encode_latents(recipe, context)}")
