"""Recipes, and what is done with them."""

from ditlab.recipes.find import NAMES, find_recipe
from ditlab.recipes.inspect import inspect_model
from ditlab.recipes.options import RecipeOptions, recipe_options
from ditlab.recipes.prepare import Place, default_device, train_autoencoder
from ditlab.recipes.recipe import Recipe
from ditlab.recipes.run import encode_latents, train_recipe
from ditlab.recipes.settle import settle

__all__ = [
    "NAMES",
    "Place",
    "Recipe",
    "RecipeOptions",
    "default_device",
    "encode_latents",
    "find_recipe",
    "inspect_model",
    "recipe_options",
    "settle",
    "train_autoencoder",
    "train_recipe",
]
