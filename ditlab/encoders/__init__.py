"""Autoencoders, the statistics of their latents, and the encoded cache."""

from ditlab.encoders.autoencoder import Autoencoder, AutoencoderConfig
from ditlab.encoders.cache import LatentCache, encode, identity
from ditlab.encoders.pixels import float_to_uint8, uint8_to_float
from ditlab.encoders.remote import Remote, encode_behind, is_url
from ditlab.encoders.shards import is_complete
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
    "float_to_uint8",
    "identity",
    "is_complete",
    "is_url",
    "load_pretrained",
    "new_kl",
    "uint8_to_float",
]
