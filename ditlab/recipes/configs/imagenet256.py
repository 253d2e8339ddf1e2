"""The paper's DiT-XL/2 on ImageNet at 256 pixels: 7M steps of 256, FID 2.27 with guidance 1.5 there.

    ditlab encode imagenet256 --data.path ILSVRC2012 && ditlab train imagenet256 --data.path ILSVRC2012

ILSVRC2012/train has one folder per class. The VAE comes from the hub, or from the folder --autoencoder.path. All settings are
the paper's; not run here. The published guided samples apply guidance to the first 3 latent channels only:
``ditlab sample RUN --guidance 1.5 --guidance-channels 3``.
"""

from ditlab.data import DataConfig
from ditlab.diffusion import DiffusionConfig
from ditlab.encoders import AutoencoderConfig
from ditlab.models import DiTConfig
from ditlab.pipelines import SampleConfig
from ditlab.recipes.recipe import Recipe
from ditlab.train import TrainConfig

recipe = Recipe(
    name="imagenet256",
    data=DataConfig(source="folder", size=(256,), channels=3, flip=True),
    autoencoder=AutoencoderConfig(kind="pretrained", path="stabilityai/sd-vae-ft-ema"),
    model=DiTConfig.named("DiT-XL/2"),
    diffusion=DiffusionConfig(),
    train=TrainConfig(images=7_000_000 * 256),
    sample=SampleConfig(),
    sample_images=16,
)
