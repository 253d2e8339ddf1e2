"""A recipe from the command line: its name, then flags for its fields."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

import tyro

from ditlab.cli.flags import parse
from ditlab.errors import UserError
from ditlab.models import named
from ditlab.recipes.find import NAMES, find_any_recipe, find_recipe
from ditlab.recipes.fine_tune import fine_tuning, resolved
from ditlab.recipes.recipe import AutoencoderRecipe, Recipe


@dataclass(frozen=True)
class RecipeOptions:
    """Flags of `train`, `autoencoder` and `encode`."""

    recipe: Annotated[Recipe, tyro.conf.arg(name="")]
    """Its fields are flags."""
    model: Annotated[str, tyro.conf.arg(metavar="NAME")] = ""
    """Replace the recipe's network: unet, DiT-B/2, ADM-256, ...; the --model.FIELD flags are then those of this network."""
    out: str = ""
    """Run folder."""
    device: str = ""
    """cpu, cuda, cuda:1 or mps; empty: a GPU if there is one."""
    profile: bool = False
    """Profile training steps into OUT/profile."""


@dataclass(frozen=True)
class AutoencoderOptions:
    """Flags of `autoencoder` for the folder of an autoencoder."""

    recipe: Annotated[AutoencoderRecipe, tyro.conf.arg(name="")]
    """Its fields are flags."""
    out: str = ""
    """Folder of the autoencoder."""
    device: str = ""
    """cpu, cuda, cuda:1 or mps; empty: a GPU if there is one."""
    profile: bool = False
    """Profile training steps into OUT/profile."""


def autoencoder_options(words: Sequence[str]) -> AutoencoderOptions | None:
    """Parse the arguments after ``ditlab autoencoder FOLDER``; None unless FOLDER is that of an autoencoder."""
    if not words or not Path(words[0]).exists():
        return None
    found, out = find_any_recipe(words[0])
    if isinstance(found, Recipe):
        return None
    return parse(AutoencoderOptions, words[1:], f"autoencoder {words[0]}", AutoencoderOptions(found, out=str(out)))


def recipe_options(words: Sequence[str], command: str) -> tuple[RecipeOptions, Recipe]:
    """Parse the arguments after ``ditlab COMMAND``: the options, and the recipe before any flag was applied."""
    known = f"one of {', '.join(NAMES)}, a .py file, a recipe.json or a run folder"
    if words and words[0] in ("-h", "--help"):
        print(f"usage: ditlab {command} RECIPE [--out DIR] [--FIELD VALUE ...]\n\nRECIPE is {known}.")
        print(f"`ditlab {command} RECIPE --help` lists the fields with their values.")
        raise SystemExit(0)
    if not words or words[0].startswith("-"):
        raise UserError(f"`ditlab {command}` needs a recipe as its first argument: {known}")
    found, out = find_recipe(words[0])
    # Before parsing, since the network decides which flags exist.
    name, init = _flag(words, "--model"), _flag(words, "--init")
    if name and init:
        raise UserError(f"--init {init} has a network of its own; omit --model, and change it by --model.FIELD")
    recipe = replace(found, model=named(name)) if name else found
    if init and resolved(init) != found.init:  # not where a run is resumed, whose recipe has it
        recipe = fine_tuning(found, init, open_size=found.name == "folder")
    given = parse(RecipeOptions, words[1:], f"{command} {words[0]}", RecipeOptions(recipe, out=str(out)))
    if Path(given.recipe.name).name != given.recipe.name:
        raise UserError(f"--name {given.recipe.name!r} is not the name of a folder; give the folder itself with --out")
    if init:
        given = replace(given, recipe=replace(given.recipe, init=resolved(given.recipe.init)))
    if Path(given.out) == out and out.name == found.name:
        given = replace(given, out=str(out.with_name(given.recipe.name)))  # --name names the folder, unless --out does
    return given, found


def _flag(words: Sequence[str], wanted: str) -> str:
    """The value of the last flag, as ``--model NAME`` or ``--model=NAME``; the parser reports mistakes in it."""
    name = ""
    for word, following in zip(words, [*words[1:], ""], strict=True):
        flag, equals, value = word.partition("=")
        if flag == wanted:
            name = value if equals else following
    return name
