"""Emoji of five styles from prompts ("noto style dragon face"), 64x64 pixels, in latents of a small autoencoder.

    ditlab data emoji
    ditlab train emoji

The first command gets the pictures, which are no part of ditlab. The second trains the autoencoder (64x64x3 to 16x16x4),
encodes the images, then trains the DiT on 64 patches and the words of the captions, in one stream. The time was not measured;
the log of each part begins with an estimate.
"""

from ditlab.data import DataConfig
from ditlab.diffusion import DiffusionConfig, GuidanceConfig
from ditlab.encoders import AutoencoderConfig, TextEncoderConfig
from ditlab.models import DiTConfig
from ditlab.pipelines import SampleConfig
from ditlab.recipes.recipe import Recipe
from ditlab.train import TrainConfig

recipe = Recipe(
    name="emoji",
    data=DataConfig(source="emoji", size=(64,)),
    autoencoder=AutoencoderConfig(kind="kl", latent_channels=4, widths=(16, 32, 64), layers=1, kl_weight=3e-4),
    autoencoder_train=TrainConfig(
        images=384_000, batch=64, lr=1e-3, warmup=0.02, cooldown=0.4, ema=0.998, precision="bf16",
        log=6_400, checkpoint=32_000, samples=64_000,
    ),
    text=TextEncoderConfig(kind="tokens", max_tokens=16),
    model=DiTConfig(depth=8, width=240, heads=6, patch=2, block="adaln-in-context", shared_modulation=True, qk_norm=True),
    diffusion=DiffusionConfig(schedule="rectified-flow", target="velocity", learned_variance=False, times="logit-normal"),
    train=TrainConfig(
        images=2_560_000, batch=64, lr=1e-3, warmup=0.02, cooldown=0.4, ema=0.9995, precision="bf16",
        log=6_400, checkpoint=51_200, samples=102_400,
    ),
    sample=SampleConfig(sampler="heun", steps=25, guidance=GuidanceConfig(scale=3.0)),
    sample_images=64,
)  # fmt: skip
