"""Autoencoders, the statistics of their latents, and the encoded cache."""

from ditlab.latents.autoencoder import Autoencoder, AutoencoderConfig
from ditlab.latents.cache import LatentCache, encode, identity, to_unit
from ditlab.latents.remote import Remote, encode_behind, is_url
from ditlab.latents.statistics import ChannelStatistics
from ditlab.latents.vae import DiffusersAutoencoder, load_pretrained, new_kl

__all__ = [
    "Autoencoder",
    "AutoencoderConfig",
    "ChannelStatistics",
    "DiffusersAutoencoder",
    "LatentCache",
    "Remote",
    "encode",
    "encode_behind",
    "identity",
    "is_url",
    "load_pretrained",
    "new_kl",
    "to_unit",
]
