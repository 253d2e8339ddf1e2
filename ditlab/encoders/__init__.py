"""Autoencoders, the statistics of their latents, and the encoded cache."""

from ditlab.encoders.autoencoder import Autoencoder, AutoencoderConfig
from ditlab.encoders.cache import LatentCache, encode, identity, to_unit
from ditlab.encoders.remote import Remote, encode_behind, is_url
from ditlab.encoders.statistics import ChannelStatistics
from ditlab.encoders.vae import DiffusersAutoencoder, load_pretrained, new_kl

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
