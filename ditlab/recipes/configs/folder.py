"""A folder of images in pixels, with one sub-folder per class or none.

    ditlab train folder --data.path ./photos

Size, batch and precision are chosen for the machine and logged: 32x32 on a CPU, 64x64 on a GPU.
"""

from ditlab.data import DataConfig
from ditlab.diffusion import DiffusionConfig
from ditlab.models import DiTConfig
from ditlab.pipelines import SampleConfig
from ditlab.recipes.recipe import Recipe
from ditlab.train import TrainConfig

recipe = Recipe(
    name="folder",
    data=DataConfig(source="folder", flip=True),
    model=DiTConfig(depth=8, width=256, heads=8, patch=4),
    diffusion=DiffusionConfig(schedule="rectified-flow", target="velocity", learned_variance=False, times="logit-normal"),
    train=TrainConfig(
        images=1_000_000, batch=0, lr=5e-4, warmup=0.02, cooldown=0.3, ema=0.999,
        log=6_400, checkpoint=32_000, samples=64_000,
    ),
    sample=SampleConfig(sampler="heun", steps=25),
    sample_images=64,
)  # fmt: skip
