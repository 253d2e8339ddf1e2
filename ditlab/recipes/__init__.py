"""Recipes, and what is done with them."""

from ditlab.recipes.autoconfigure import autoconfigure
from ditlab.recipes.find import NAMES, find_recipe
from ditlab.recipes.inspect import inspect_model
from ditlab.recipes.prepare import RunContext, train_autoencoder
from ditlab.recipes.recipe import Recipe
from ditlab.recipes.run import encode_latents, train_recipe

__all__ = [
    "NAMES",
    "Recipe",
    "RunContext",
    "autoconfigure",
    "encode_latents",
    "find_recipe",
    "inspect_model",
    "train_autoencoder",
    "train_recipe",
]
