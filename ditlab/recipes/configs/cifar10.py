"""CIFAR-10 in pixels: 32x32x3 at patch 2 is the paper's 256 tokens.

    ditlab train cifar10 --data.path cifar10.tar.zst     # a folder or an archive with one sub-folder per class

For one GPU: a forward pass takes 6.05 GMACs per image. `--model.patch 8` has 16 tokens and
runs on two cores.
"""

from ditlab.data import DataConfig
from ditlab.diffusion import DiffusionConfig, GuidanceConfig
from ditlab.models import DiTConfig
from ditlab.pipelines import SampleConfig
from ditlab.recipes.recipe import Recipe
from ditlab.train import TrainConfig

recipe = Recipe(
    name="cifar10",
    data=DataConfig(source="archive", flip=True),
    model=DiTConfig.named("DiT-S/2"),
    diffusion=DiffusionConfig(schedule="rectified-flow", target="velocity", learned_variance=False, times="logit-normal"),
    train=TrainConfig(
        images=25_600_000, batch=256, lr=4e-4, warmup=0.02, cooldown=0.2, ema=0.9995,
        log=25_600, checkpoint=512_000, samples=512_000,
    ),
    sample=SampleConfig(sampler="heun", steps=25, guidance=GuidanceConfig(1.0)),
)  # fmt: skip
