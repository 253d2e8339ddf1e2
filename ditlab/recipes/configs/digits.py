"""Handwritten digits in three minutes on two cores.

ditlab train digits
"""

from ditlab.data import DataConfig
from ditlab.diffusion import DiffusionConfig
from ditlab.models import DiTConfig
from ditlab.pipelines import SampleConfig
from ditlab.recipes.recipe import Recipe
from ditlab.train import TrainConfig

recipe = Recipe(
    name="digits",
    data=DataConfig(source="digits"),
    model=DiTConfig(depth=4, width=64, heads=4, patch=2),
    diffusion=DiffusionConfig(schedule="rectified-flow", target="velocity", learned_variance=False, times="logit-normal"),
    train=TrainConfig(
        images=600_000, batch=128, lr=6e-3, beta2=0.99, warmup=0.02, cooldown=0.5, ema=0.998,
        log=6_400, checkpoint=64_000, samples=64_000,
    ),
    sample=SampleConfig(sampler="heun", steps=25),
)  # fmt: skip
