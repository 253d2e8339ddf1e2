"""``ditlab train``, ``autoencoder`` and ``encode``: run a recipe, or one stage of it."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ditlab.cli.recipe_options import AutoencoderOptions, RecipeOptions
    from ditlab.recipes import RunContext


def _context(options: RecipeOptions | AutoencoderOptions) -> RunContext:
    from pathlib import Path

    from ditlab.recipes import RunContext
    from ditlab.runtime.console import main_process_log
    from ditlab.runtime.device import default_device
    from ditlab.runtime.distributed import join

    processes = join(options.recipe.train.timeout)
    log = main_process_log(processes)
    return RunContext(Path(options.out), default_device(processes), log, processes, options.profile)


def train(arguments: list[str]) -> None:
    """Train a recipe; the same command resumes an interrupted run."""
    from ditlab.cli.recipe_options import recipe_options
    from ditlab.recipes import autoconfigure, train_recipe

    options, found = recipe_options(arguments, "train")
    context = _context(options)
    train_recipe(autoconfigure(options.recipe, context.device, context.log, found.name == "folder"), context)


def autoencoder(arguments: list[str]) -> None:
    """Train only the autoencoder of a recipe."""
    from ditlab.cli.recipe_options import autoencoder_options, recipe_options
    from ditlab.recipes import autoconfigure, train_autoencoder, train_own_autoencoder

    if trained := autoencoder_options(arguments):
        context = _context(trained)
        train_autoencoder(autoconfigure(trained.recipe, context.device, context.log, open_size=False), context)
        return
    options, found = recipe_options(arguments, "autoencoder")
    context = _context(options)
    recipe = autoconfigure(options.recipe, context.device, context.log, found.name == "folder")
    train_own_autoencoder(recipe, context)


def encode(arguments: list[str]) -> None:
    """Encode the images of a recipe to latents before training."""
    from ditlab.cli.recipe_options import recipe_options
    from ditlab.recipes import autoconfigure, encode_latents

    options, found = recipe_options(arguments, "encode")
    context = _context(options)
    recipe = autoconfigure(options.recipe, context.device, context.log, found.name == "folder")
    context.log(f"latents: {encode_latents(recipe, context)}")
