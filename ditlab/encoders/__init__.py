"""Autoencoders, the statistics of their latents, the latent cache, and text encoders."""

from ditlab.encoders.autoencoder import Autoencoder, AutoencoderConfig
from ditlab.encoders.cache import LatentCache, cache_key, encode
from ditlab.encoders.captions import EncodedCaptions, different_texts
from ditlab.encoders.pixels import float_to_uint8, uint8_to_float
from ditlab.encoders.record import AUTOENCODERS, autoencoder_kind
from ditlab.encoders.remote import RemoteCache, encode_remote
from ditlab.encoders.shards import is_complete
from ditlab.encoders.statistics import ChannelStatistics
from ditlab.encoders.text import EncodedText, TextEncoder, TextEncoderConfig
from ditlab.encoders.text_cache import TextCache, encode_texts
from ditlab.encoders.text_kinds import build_text_encoder, restore_text_encoder
from ditlab.encoders.vae import DiffusersAutoencoder, load_pretrained, new_kl

__all__ = [
    "AUTOENCODERS",
    "Autoencoder",
    "AutoencoderConfig",
    "ChannelStatistics",
    "DiffusersAutoencoder",
    "EncodedCaptions",
    "EncodedText",
    "LatentCache",
    "RemoteCache",
    "TextCache",
    "TextEncoder",
    "TextEncoderConfig",
    "autoencoder_kind",
    "build_text_encoder",
    "cache_key",
    "different_texts",
    "encode",
    "encode_remote",
    "encode_texts",
    "float_to_uint8",
    "is_complete",
    "load_pretrained",
    "new_kl",
    "restore_text_encoder",
    "uint8_to_float",
]  # fmt: skip
# fmt: skip
