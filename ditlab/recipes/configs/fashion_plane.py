"""FashionMNIST compressed to two numbers an image: the fashion autoencoder, downsampled to 1x1 with two channels.

    ditlab autoencoder fashion-plane

draws the plane of these numbers, coloured by class, and images decoded from a grid over it.
"""

from dataclasses import replace

from ditlab.data import DataConfig
from ditlab.encoders import AutoencoderConfig
from ditlab.recipes.configs.fashion import recipe as fashion

recipe = replace(
    fashion,
    name="fashion-plane",
    data=DataConfig(source="fashion", size=(32,), fit="pad"),
    autoencoder=AutoencoderConfig(
        kind="kl", latent_channels=2, widths=(16, 32, 32, 64, 64, 64), layers=1, kl_weight=1e-3,
    ),
    autoencoder_train=replace(fashion.autoencoder_train, images=160_000, lr=1e-3, warmup=0.05, samples=16_000),
)  # fmt: skip
