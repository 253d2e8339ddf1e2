"""A recipe from the words of a command line: its name, then flags for its fields."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

import tyro

from ditlab.cli.flags import parse
from ditlab.errors import UserError
from ditlab.models import named
from ditlab.recipes.find import NAMES, find_recipe
from ditlab.recipes.recipe import Recipe


@dataclass(frozen=True)
class RecipeOptions:
    """What `train`, `autoencoder` and `encode` are told after the recipe."""

    recipe: Annotated[Recipe, tyro.conf.arg(name="")]
    """Its fields are flags."""
    model: Annotated[str, tyro.conf.arg(metavar="NAME")] = ""
    """Another network in place of the recipe's, as unet, DiT-B/2 or ADM-256; --model.FIELD then changes it."""
    out: str = ""
    """Run folder."""
    profile: bool = False
    """Write where a training step's time goes into DIR/profile."""


def recipe_options(words: Sequence[str], command: str) -> tuple[RecipeOptions, Recipe]:
    """What the words after ``ditlab COMMAND`` ask for, and the recipe as it was found before any flag.

    Raises:
        UserError: no such recipe, network or flag, or a value that does not fit.
        SystemExit: help was asked for, and printed.
    """
    known = f"one of {', '.join(NAMES)}, a .py file, a recipe.json or a run folder"
    if words and words[0] in ("-h", "--help"):
        print(f"usage: ditlab {command} RECIPE [--out DIR] [--FIELD VALUE ...]\n\nRECIPE is {known}.")
        print(f"`ditlab {command} RECIPE --help` lists its fields with their values.")
        raise SystemExit(0)
    if not words or words[0].startswith("-"):
        raise UserError(f"`ditlab {command}` needs a recipe first: {known}")
    found, out = find_recipe(words[0])
    # Before its fields are flags: which ones there are depends on the network.
    recipe = replace(found, model=named(name)) if (name := _model_name(words)) else found
    given = parse(RecipeOptions, words[1:], f"{command} {words[0]}", RecipeOptions(recipe, out=str(out)))
    if Path(given.out) == out and out.name == found.name:
        given = replace(
            given, out=str(out.with_name(given.recipe.name))
        )  # its name names the folder, unless --out does
    return given, found


def _model_name(words: Sequence[str]) -> str:
    """The value of the last ``--model NAME`` or ``--model=NAME``; what is amiss with it, the parser says."""
    name = ""
    for word, following in zip(words, [*words[1:], ""], strict=True):
        if word == "--model":
            name = following
        elif word.startswith("--model="):
            name = word.partition("=")[2]
    return name
