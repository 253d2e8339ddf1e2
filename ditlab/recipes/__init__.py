"""Recipes, and running them."""

from ditlab.recipes.autoconfigure import autoconfigure
from ditlab.recipes.find import NAMES, find_any_recipe, find_recipe
from ditlab.recipes.inspect import inspect_model
from ditlab.recipes.prepare import RunContext, train_autoencoder, train_own_autoencoder
from ditlab.recipes.recipe import AutoencoderRecipe, Recipe, network_spec
from ditlab.recipes.run import encode_latents, train_recipe

__all__ = [
    "NAMES", "AutoencoderRecipe", "Recipe", "RunContext", "autoconfigure", "encode_latents", "find_any_recipe",
    "find_recipe", "inspect_model", "network_spec", "train_autoencoder", "train_own_autoencoder", "train_recipe",
]  # fmt: skip
