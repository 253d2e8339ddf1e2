"""What a recipe leaves open, chosen for the machine and said."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch

from ditlab.recipes.recipe import Recipe


def autoconfigure(recipe: Recipe, device: torch.device, log: Callable[[str], None], open_size: bool) -> Recipe:
    """Choose image size, batch and precision where a recipe for any folder leaves them open.

    Args:
        recipe: to settle; a batch of 0 is open.
        device: to choose for.
        log: writes one line to the console.
        open_size: whether an empty size is open too, as in recipe ``folder``, and does not mean the images' own.
    """
    gpu = device.type == "cuda"
    chosen = []
    if open_size and not recipe.data.size:
        size = 64 if gpu else 32
        recipe = replace(recipe, data=replace(recipe.data, size=(size,)))
        chosen.append(f"size {size} (--data.size)")
    if recipe.train.batch == 0:
        batch = 256 if gpu else 64
        recipe = replace(recipe, train=replace(recipe.train, batch=batch))
        chosen.append(f"batch {batch} (--train.batch)")
    if recipe.autoencoder.kind == "kl" and recipe.autoencoder_train.batch == 0:
        batch = 256 if gpu else 64
        recipe = replace(recipe, autoencoder_train=replace(recipe.autoencoder_train, batch=batch))
        chosen.append(f"batch {batch} (--autoencoder-train.batch)")
    if chosen:
        chosen.append(f"precision {recipe.train.precision_on(device)} (--train.precision)")
        log(f"chosen for this machine ({device}): {', '.join(chosen)}")
    return recipe
