"""Autoencoders: from pixels to the latents that a diffusion model is trained on, and back.

*Moments* are the output of the encoder, and what the cache stores. A *raw latent* is sampled from them. The *latent*,
the input of the diffusion model, is the raw latent normalised by per-channel statistics, which are measured once and stored
with the autoencoder.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from ditlab.errors import check_divisible


@dataclass(frozen=True)
class AutoencoderConfig:
    """Which latents the diffusion model is trained on."""

    kind: Literal["pixels", "kl", "causal", "pretrained"] = "pixels"
    """pixels: no autoencoder. kl: a convolutional autoencoder, trained here. causal: one of images and clips, trained here.
    pretrained: a VAE loaded from path."""
    path: str = ""
    """Folder of a trained autoencoder (kl, causal; empty: RUN-autoencoder), or folder or hub id of a pretrained VAE."""
    subfolder: str = ""
    """Folder of the VAE in a pretrained pipeline, usually vae."""
    latent_channels: int = 4
    """Channels of the latent (kl, causal)."""
    widths: tuple[int, ...] = (32, 64, 64)
    """Channels of each level; each level after the first halves the image size (kl, causal)."""
    layers: int = 1
    """Residual blocks per level (kl, causal)."""
    time_factor: int = 4
    """Frames of a clip, after the first, for each latent frame (causal)."""
    kl_weight: float = 1e-4
    """Weight of the KL divergence, which is summed over the latent and divided by the number of pixels (kl, causal)."""

    @property
    def factor(self) -> int:
        """Image size divided by latent size (kl, causal)."""
        return 2 ** (len(self.widths) - 1)


class Autoencoder(nn.Module):
    """Maps pixels (N, C, H, W) in [-1, 1] to latents (N, c, H / factor, W / factor) and back.

    This class is the identity: the latents are the normalised pixels, also of clips (N, C, F, H, W).
    """

    mean: Tensor  # of each raw latent channel over the training data, (c, 1, 1)
    std: Tensor  # standard deviation, (c, 1, 1)
    stochastic = False  # whether moments are means and log variances

    def __init__(self, channels: int, latent_channels: int, factor: int):
        super().__init__()
        self.channels, self.latent_channels, self.factor = channels, latent_channels, factor
        self.register_buffer("mean", torch.zeros(latent_channels, 1, 1))
        self.register_buffer("std", torch.ones(latent_channels, 1, 1))

    def latent_shape(self, size: tuple[int, ...]) -> tuple[int, ...]:
        """Shape (c, *size) of the latent of an image of ``size`` (H, W); a UserError if the factor does not divide it."""
        check_divisible("images", size[-2:], self.factor, f"the autoencoder's factor {self.factor}")
        return self.latent_channels, *size[:-2], size[-2] // self.factor, size[-1] // self.factor

    def encode(self, pixels: Tensor) -> Tensor:
        """Moments of images (N, C, H, W)."""
        return pixels

    def raw_latent(self, moments: Tensor, noise: Tensor) -> Tensor:
        """A raw latent sampled from moments; ``noise`` (N, c, h, w) is standard normal."""
        del noise  # the identity samples nothing
        return moments

    def decode_raw(self, raw: Tensor) -> Tensor:
        """Pixels (N, C, H, W), roughly in [-1, 1], of raw latents (N, c, h, w)."""
        return raw

    def latent(self, moments: Tensor, noise: Tensor) -> Tensor:
        """A latent (N, c, h, w) sampled from moments: (raw - mean) / std."""
        raw = self.raw_latent(moments, noise)
        return (raw - self.per_channel(self.mean, raw)) / self.per_channel(self.std, raw)

    def decode(self, latent: Tensor) -> Tensor:
        """Pixels (N, C, H, W), roughly in [-1, 1], of latents (N, c, h, w)."""
        return self.decode_raw(latent * self.per_channel(self.std, latent) + self.per_channel(self.mean, latent))

    @staticmethod
    def per_channel(values: Tensor, like: Tensor) -> Tensor:
        """A value a channel, (c, 1, 1), in the axes of latents (N, c, *size)."""
        return values.view(-1, *[1] * (like.ndim - 2))

    def set_statistics(self, mean: Tensor, std: Tensor) -> None:
        """Set per-channel mean and standard deviation (c,) of raw latents."""
        self.mean.copy_(mean.view(-1, 1, 1))
        self.std.copy_(std.view(-1, 1, 1).clamp(min=1e-6))

    @property
    def bounds(self) -> tuple[Tensor, Tensor] | None:
        """Minimum and maximum of each latent channel, (c, 1, 1) each, for pixels; None for learned latents."""
        return (-1 - self.mean) / self.std, (1 - self.mean) / self.std

    def trained_parts(self) -> list[nn.Module]:
        """Encoder and decoder; none of the identity."""
        return []

    def record(self) -> dict[str, object]:
        """What ``restore`` needs, apart from the weights, to build this autoencoder."""
        return {"kind": "pixels", "channels": self.channels}

    def to_config(self) -> AutoencoderConfig:
        """The configuration of a recipe for the same latents; weights that were trained here are not in it."""
        return AutoencoderConfig()

    @property
    def shipped(self) -> bool:
        """Whether a model file contains the weights; of a pretrained VAE it contains the path or hub id."""
        return True

    def architecture(self) -> dict[str, object]:
        """What determines the moments apart from the weights, for the fingerprint."""
        return self.record()

    def fingerprint(self) -> str:
        """Hex digest of what determines the moments: architecture and weights, without the statistics."""
        digest = hashlib.sha256(json.dumps(self.architecture(), sort_keys=True).encode())
        for name, tensor in sorted(self.state_dict().items()):
            if name not in ("mean", "std"):
                digest.update(name.encode())
                digest.update(tensor.detach().float().cpu().contiguous().numpy().tobytes())
        return digest.hexdigest()[:32]
