"""``ditlab train``, ``autoencoder`` and ``encode``: run a recipe, or one stage of it."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ditlab.recipes import Recipe, RunContext


def _recipe(arguments: list[str], command: str) -> tuple[Recipe, RunContext]:
    """The recipe with flags applied and open settings chosen for this machine, and where to run it."""
    from pathlib import Path

    from ditlab.cli.recipe_options import recipe_options
    from ditlab.recipes import RunContext, autoconfigure
    from ditlab.runtime.console import main_process_log
    from ditlab.runtime.device import default_device
    from ditlab.runtime.distributed import join

    given, found = recipe_options(arguments, command)
    processes = join(given.recipe.train.timeout)
    log, device = main_process_log(processes), default_device(processes)
    recipe = autoconfigure(given.recipe, device, log, open_size=found.name == "folder")
    return recipe, RunContext(Path(given.out), device, log, processes, given.profile)


def train(arguments: list[str]) -> None:
    """Train a recipe; the same command resumes an interrupted run."""
    from ditlab.recipes import train_recipe

    recipe, context = _recipe(arguments, "train")
    train_recipe(recipe, context)


def autoencoder(arguments: list[str]) -> None:
    """Train only the autoencoder of a recipe."""
    from ditlab.recipes import train_autoencoder

    recipe, context = _recipe(arguments, "autoencoder")
    train_autoencoder(recipe, context)


def encode(arguments: list[str]) -> None:
    """Encode the images of a recipe to latents before training."""
    from ditlab.recipes import encode_latents

    recipe, context = _recipe(arguments, "encode")
    context.log(f"latents: {encode_latents(recipe, context)}")
