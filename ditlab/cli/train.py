"""``ditlab train``, ``autoencoder`` and ``encode``: a recipe, or a part of it, done."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ditlab.recipes import Recipe, RunContext


def _recipe(arguments: list[str], command: str) -> tuple[Recipe, RunContext]:
    """The recipe, flags applied and settled for this machine, and the place it runs in."""
    from pathlib import Path

    from ditlab.cli.recipe_options import recipe_options
    from ditlab.recipes import RunContext, autoconfigure
    from ditlab.runtime.console import main_process_log
    from ditlab.runtime.device import default_device
    from ditlab.runtime.distributed import join

    given, found = recipe_options(arguments, command)
    processes = join(given.recipe.train.timeout)
    tell, device = main_process_log(processes), default_device(processes)
    recipe = autoconfigure(given.recipe, device, tell, open_size=found.name == "folder")
    return recipe, RunContext(Path(given.out), device, tell, processes, given.profile)


def train(arguments: list[str]) -> None:
    """Train a recipe to its end; the same command goes on where it stopped."""
    from ditlab.recipes import train_recipe

    recipe, place = _recipe(arguments, "train")
    train_recipe(recipe, place)


def autoencoder(arguments: list[str]) -> None:
    """Train a recipe's autoencoder."""
    from ditlab.recipes import train_autoencoder

    recipe, place = _recipe(arguments, "autoencoder")
    train_autoencoder(recipe, place)


def encode(arguments: list[str]) -> None:
    """Make a recipe's latent cache ahead of training."""
    from ditlab.recipes import encode_latents

    recipe, place = _recipe(arguments, "encode")
    place.log(f"latents: {encode_latents(recipe, place)}")
