"""Autoencoders: pixels to the latents a diffusion model works on, and back.

Three things have three names. *Moments* are what an encoder says of an image and what the cache stores. A *raw latent* is
drawn from them. The *latent*, what diffusion sees, is the raw one normalised by per-channel statistics that were measured
once and stay with the autoencoder.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from ditlab.errors import check_divisible

KINDS = ("pixels", "kl", "pretrained")


@dataclass(frozen=True)
class AutoencoderConfig:
    """Which latents a model works on."""

    kind: Literal["pixels", "kl", "pretrained"] = "pixels"
    """pixels: none, the image itself. kl: a convolutional one, trained here. pretrained: loaded from path."""
    path: str = ""
    """Run folder of a trained one (empty: RUN-autoencoder beside the run), or the folder or hub id of a pretrained VAE."""
    subfolder: str = ""
    """Folder of the VAE inside a pretrained pipeline, as in 'vae'."""
    latent_channels: int = 4
    """Channels of the latent (kl)."""
    widths: tuple[int, ...] = (32, 64, 64)
    """Channels of each level; every level after the first halves the image (kl)."""
    layers: int = 1
    """Residual blocks a level (kl)."""
    kl_weight: float = 1e-4
    """Weight of the KL divergence, summed over the latent and divided by the pixels (kl)."""

    @property
    def factor(self) -> int:
        """How many pixels one latent pixel stands for, along a side (kl)."""
        return 2 ** (len(self.widths) - 1)


class Autoencoder(nn.Module):
    """Pixels (N, C, H, W) in [-1, 1] to latents (N, c, H / factor, W / factor) and back.

    This class is the identity: the latents are the pixels, normalised.

    Attributes:
        mean: of each raw latent channel over the data, (c, 1, 1).
        std: likewise.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, channels: int, latent_channels: int, factor: int):
        super().__init__()
        self.channels, self.latent_channels, self.factor = channels, latent_channels, factor
        self.register_buffer("mean", torch.zeros(latent_channels, 1, 1))
        self.register_buffer("std", torch.ones(latent_channels, 1, 1))

    def latent_shape(self, size: tuple[int, int]) -> tuple[int, int, int]:
        """Shape (c, h, w) of the latent of an image of ``size`` (H, W).

        Raises:
            UserError: the factor does not divide the image.
        """
        check_divisible("images", size, self.factor, f"the autoencoder's factor {self.factor}")
        return self.latent_channels, size[0] // self.factor, size[1] // self.factor

    def encode(self, pixels: Tensor) -> Tensor:
        """Moments of images (N, C, H, W)."""
        return pixels

    def raw_latent(self, moments: Tensor, noise: Tensor) -> Tensor:
        """A raw latent drawn from moments; ``noise`` (N, c, h, w) is standard normal."""
        del noise  # the identity has nothing to draw
        return moments

    def decode_raw(self, raw: Tensor) -> Tensor:
        """Pixels (N, C, H, W), about [-1, 1], of raw latents (N, c, h, w)."""
        return raw

    def latent(self, moments: Tensor, noise: Tensor) -> Tensor:
        """A latent (N, c, h, w) drawn from moments: the raw one, normalised."""
        return (self.raw_latent(moments, noise) - self.mean) / self.std

    def decode(self, latent: Tensor) -> Tensor:
        """Pixels (N, C, H, W), about [-1, 1], of latents (N, c, h, w)."""
        return self.decode_raw(latent * self.std + self.mean)

    def set_statistics(self, mean: Tensor, std: Tensor) -> None:
        """Keep per-channel statistics (c,) of raw latents."""
        self.mean.copy_(mean.view(-1, 1, 1))
        self.std.copy_(std.view(-1, 1, 1).clamp(min=1e-6))

    @property
    def bounds(self) -> tuple[Tensor, Tensor] | None:
        """The range of each latent channel, (c, 1, 1) twice, where there is one: pixels have, learned latents do not."""
        return (-1 - self.mean) / self.std, (1 - self.mean) / self.std

    def record(self) -> dict[str, object]:
        """What ``restore`` needs, beside the weights, to build this again."""
        return {"kind": "pixels", "channels": self.channels}

    @property
    def shipped(self) -> bool:
        """Whether a model file carries the weights; a pretrained VAE stays where it is and is referred to."""
        return True

    def architecture(self) -> dict[str, object]:
        """What decides the moments beside the weights, for the fingerprint."""
        return self.record()

    def fingerprint(self) -> str:
        """Hex digest of everything that decides the moments: the architecture and the weights, not the statistics."""
        digest = hashlib.sha256(json.dumps(self.architecture(), sort_keys=True).encode())
        for name, tensor in sorted(self.state_dict().items()):
            if name not in ("mean", "std"):
                digest.update(name.encode())
                digest.update(tensor.detach().float().cpu().contiguous().numpy().tobytes())
        return digest.hexdigest()[:32]
