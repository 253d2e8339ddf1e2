"""Rendered scenes from prompts ("a red square left of a blue circle"), in latents of a small autoencoder.

    ditlab train scenes

trains the autoencoder first (32x32x3 to 8x8x4), encodes the 100,000 images, then trains the DiT on 64 tokens and the words of
the captions, in one stream.
"""

from ditlab.data import DataConfig
from ditlab.diffusion import DiffusionConfig, GuidanceConfig
from ditlab.encoders import AutoencoderConfig, TextEncoderConfig
from ditlab.models import DiTConfig
from ditlab.pipelines import SampleConfig
from ditlab.recipes.recipe import Recipe
from ditlab.train import TrainConfig

recipe = Recipe(
    name="scenes",
    data=DataConfig(source="scenes"),
    autoencoder=AutoencoderConfig(kind="kl", latent_channels=4, widths=(16, 32, 64), layers=1, kl_weight=3e-4),
    autoencoder_train=TrainConfig(
        images=128_000, batch=64, lr=1e-3, warmup=0.02, cooldown=0.4, ema=0.998, precision="bf16",
        log=6_400, checkpoint=32_000, samples=64_000,
    ),
    text=TextEncoderConfig(kind="tokens"),
    model=DiTConfig(depth=6, width=192, heads=6, patch=1, block="adaln-in-context"),
    diffusion=DiffusionConfig(schedule="rectified-flow", target="velocity", learned_variance=False, times="logit-normal"),
    train=TrainConfig(
        images=1_000_000, batch=64, lr=1e-3, warmup=0.02, cooldown=0.4, ema=0.999, precision="bf16",
        log=6_400, checkpoint=51_200, samples=102_400,
    ),
    sample=SampleConfig(sampler="heun", steps=25, guidance=GuidanceConfig(scale=3.0)),
    sample_images=64,
)  # fmt: skip
