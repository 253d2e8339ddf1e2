"""A model of prompts that is trained in three seconds: images of one colour, captioned."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from ditlab.data.arrays import ArraySource
from ditlab.diffusion import DiffusionConfig
from ditlab.encoders import TextEncoderConfig
from ditlab.models import DiTConfig
from ditlab.pipelines import Pipeline, SampleConfig
from ditlab.recipes import Recipe, train_recipe
from ditlab.recipes.prepare import RunContext
from ditlab.train import TrainConfig

COLOURS = {"red": (255, 0, 0), "green": (0, 255, 0), "blue": (0, 0, 255)}
RECIPE = Recipe(
    name="colours",
    text=TextEncoderConfig("tokens"),
    model=DiTConfig(block="adaln-in-context", depth=2, width=32, heads=2, patch=2),
    diffusion=DiffusionConfig("rectified-flow", "velocity", learned_variance=False),
    train=TrainConfig(images=8000, batch=32, lr=4e-3, ema=0.98, log=4000, checkpoint=8000, samples=8000, threads=1),
    sample=SampleConfig("euler", 4),
    sample_images=4,
)


def captioned() -> ArraySource:
    """Images of one colour, with two captions, one caption, or none."""
    pixels = np.array([colour for colour in COLOURS.values() for _ in range(8)], np.uint8)[:, None, None]
    source = ArraySource("colours", pixels.repeat(4, 1).repeat(4, 2), np.zeros(24, np.int64), ())
    source.captions = [
        [(f"a {name} image", f"all is {name}"), (name,), ()][k % 3] for name in COLOURS for k in range(8)
    ]
    return source


def run(folder: Path, recipe: Recipe = RECIPE) -> Pipeline:
    """Train the recipe into a folder."""
    return train_recipe(recipe, RunContext(folder, torch.device("cpu"), lambda line: None, images=captioned()))


def colour_of(images: np.ndarray) -> list[str]:
    """The name of each image's colour."""
    return [list(COLOURS)[k] for k in images.mean(axis=(1, 2)).argmax(axis=1)]
