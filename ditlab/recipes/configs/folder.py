"""A folder of images in pixels, with one sub-folder per class or none.

    ditlab train folder --data.path ./photos

Size, network, batch, precision and length are chosen for the machine and logged. On a GPU: 64x64, and the network below for
1,000,000 images. On a CPU: 32x32, a network of depth 6 and width 128, and as many images as it trains on in half an hour.
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
        images=0, batch=0, lr=5e-4, warmup=0.02, cooldown=0.3, ema=0.999,
        log=6_400, checkpoint=32_000, samples=64_000,
    ),
    sample=SampleConfig(sampler="heun", steps=25),
    sample_images=64,
)  # fmt: skip
