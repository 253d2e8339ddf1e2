"""Settings that a recipe leaves open, chosen for the machine and logged."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TypeVar

import torch

from ditlab.encoders import autoencoder_kind
from ditlab.recipes.recipe import AutoencoderRecipe, Recipe

R = TypeVar("R", bound=Recipe | AutoencoderRecipe)


def autoconfigure(recipe: R, device: torch.device, log: Callable[[str], None], open_size: bool) -> R:
    """Choose the image size and batch sizes that are open for a device, and log them: a batch of 0, an empty size.

    Without ``open_size``, which recipe ``folder`` has, an empty size means the size of the images.
    """
    gpu, chosen = device.type == "cuda", []
    if open_size and not recipe.data.size:
        size = 64 if gpu else 32
        recipe = replace(recipe, data=replace(recipe.data, size=(size,)))
        chosen.append(f"size {size} (--data.size)")
    trained = ["train"]
    if isinstance(recipe, Recipe) and autoencoder_kind(recipe.autoencoder.kind).trained:
        trained.append("autoencoder_train")
    for field in trained:
        if getattr(recipe, field).batch == 0:
            batch = 256 if gpu else 64
            recipe = replace(recipe, **{field: replace(getattr(recipe, field), batch=batch)})
            chosen.append(f"batch {batch} (--{field.replace('_', '-')}.batch)")
    if chosen:
        chosen.append(f"precision {recipe.train.precision_on(device)} (--train.precision)")
        log(f"chosen for this machine ({device}): {', '.join(chosen)}")
    return recipe
