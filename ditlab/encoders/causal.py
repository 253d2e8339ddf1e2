"""The causal autoencoder of images and clips (W.A.L.T: Gupta et al. 2023, section 3.1; MAGVIT-v2: Yu et al. 2023).

A clip of 1 + k n frames has 1 + n latent frames, k the factor in time. Latent frame 0 is that of frame 0 alone, so that an
image is a clip of one frame; latent frame j depends on no frame after k j, and its frames are decoded from no latent after it.
A long clip is coded in chunks: every convolution keeps the last frames that it read, which gives what the whole clip gives.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from ditlab.encoders.autoencoder import Autoencoder, AutoencoderConfig
from ditlab.errors import UserError, check_divisible

Memory = dict[nn.Module, Tensor]  # frames that a layer read last, of a clip that is coded in chunks
CHUNK = 4  # latent frames coded at a time


class CausalConv3d(nn.Module):
    """A convolution of clips (N, C, F, H, W) that reads no later frame: padding in time is before the first frame only.

    With a stride s in time 1 + s n frames become 1 + n.
    """

    def __init__(self, channels: int, out: int, kernel: int = 3, stride: tuple[int, int] = (1, 1)):
        super().__init__()
        self.before, self.steps = kernel - 1, stride[0]
        space = stride[1]
        self.convolution = nn.Conv3d(
            channels, out, kernel, (stride[0], space, space), padding=(0, kernel // 2, kernel // 2)
        )

    def forward(self, x: Tensor, memory: Memory | None = None) -> Tensor:
        """Convolve; ``memory`` has the frames before ``x``, and gets those that the next chunk needs."""
        if memory is None or self not in memory:
            x = F.pad(x, (0, 0, 0, 0, self.before, 0))
        else:
            x = torch.cat([memory[self], x], dim=2)
        out = self.convolution(x)
        if memory is not None:
            memory[self] = x[:, :, out.shape[2] * self.steps :]
        return out


class ChannelNorm(nn.Module):
    """Layer norm over the channels of each place, which keeps frames apart."""

    def __init__(self, channels: int):
        super().__init__()
        self.norm = nn.LayerNorm(channels)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, F, H, W) to the same shape."""
        return self.norm(x.movedim(1, -1)).movedim(-1, 1)


class ResidualBlock(nn.Module):
    """x + convolution(silu(norm(convolution(silu(norm(x))))))."""

    def __init__(self, channels: int, out: int):
        super().__init__()
        self.norm1, self.norm2 = ChannelNorm(channels), ChannelNorm(out)
        self.convolution1, self.convolution2 = CausalConv3d(channels, out), CausalConv3d(out, out)
        self.skip = nn.Conv3d(channels, out, 1) if channels != out else nn.Identity()

    def forward(self, x: Tensor, memory: Memory | None = None) -> Tensor:
        """(N, C, F, H, W) to (N, out, F, H, W)."""
        hidden = self.convolution1(F.silu(self.norm1(x)), memory)
        return self.skip(x) + self.convolution2(F.silu(self.norm2(hidden)), memory)


class Upsample(nn.Module):
    """A causal convolution, then depth to space; of s times as many frames the first s - 1 are dropped."""

    def __init__(self, channels: int, out: int, steps: int):
        super().__init__()
        self.steps = steps
        self.convolution = CausalConv3d(channels, 4 * steps * out)

    def forward(self, x: Tensor, memory: Memory | None = None) -> Tensor:
        """(N, C, 1 + n, H, W) to (N, out, 1 + s n, 2 H, 2 W)."""
        first = memory is None or self.convolution not in memory
        x = self.convolution(x, memory)
        x = rearrange(x, "n (c s p q) f h w -> n c (f s) (h p) (w q)", s=self.steps, p=2, q=2)
        return x[:, :, self.steps - 1 :] if first else x


class Layers(nn.ModuleList):
    """Layers in sequence, which share the memory of a clip."""

    def forward(self, x: Tensor, memory: Memory | None = None) -> Tensor:
        """The output of the last layer."""
        for layer in self:
            x = layer(x, memory)
        return x


class Output(nn.Module):
    """The last layer of encoder and decoder: norm, silu, convolution."""

    def __init__(self, channels: int, out: int):
        super().__init__()
        self.norm, self.convolution = ChannelNorm(channels), CausalConv3d(channels, out)

    def forward(self, x: Tensor, memory: Memory | None = None) -> Tensor:
        """(N, C, F, H, W) to (N, out, F, H, W)."""
        return self.convolution(F.silu(self.norm(x)), memory)


def temporal_strides(levels: int, factor: int) -> list[int]:
    """Strides in time between ``levels``, of 1 and 2: time is halved between the last ones, as in W.A.L.T.

    UserError: the factor is no power of two, or needs more levels.
    """
    halvings = factor.bit_length() - 1
    if factor < 1 or 2**halvings != factor or halvings >= levels:
        most = 2 ** (levels - 1)
        raise UserError(
            f"--autoencoder.time-factor {factor} must be a power of two, at most {most} for {levels} levels of widths"
        )
    return [1] * (levels - 1 - halvings) + [2] * halvings


class CausalAutoencoder(Autoencoder):
    """Maps images (N, C, H, W), as clips of one frame, and clips (N, C, 1 + k n, H, W) to latents and back.

    Args:
        channels: of the pixels.
        latent_channels: of the latents.
        widths: of each level; each after the first halves height and width.
        layers: residual blocks of a level.
        time_factor: k.
    """

    stochastic = True

    def __init__(self, channels: int, latent_channels: int, widths: Sequence[int], layers: int, time_factor: int):
        super().__init__(channels, latent_channels, 2 ** (len(widths) - 1))
        self.widths, self.layers, self.time_factor = tuple(widths), layers, time_factor
        strides = temporal_strides(len(widths), time_factor)
        encoder: list[nn.Module] = [CausalConv3d(channels, widths[0])]
        decoder: list[nn.Module] = [CausalConv3d(latent_channels, widths[-1])]
        for level, width in enumerate(widths):
            if level:
                encoder.append(CausalConv3d(widths[level - 1], width, stride=(strides[level - 1], 2)))
            encoder += [ResidualBlock(width, width) for _ in range(layers)]
        for level, width in reversed(list(enumerate(widths))):
            decoder += [ResidualBlock(width, width) for _ in range(layers)]
            if level:
                decoder.append(Upsample(width, widths[level - 1], strides[level - 1]))
        self.encoder = Layers([*encoder, Output(widths[-1], 2 * latent_channels)])
        self.decoder = Layers([*decoder, Output(widths[0], channels)])

    def latent_shape(self, size: tuple[int, ...]) -> tuple[int, ...]:
        """Shape (c, 1 + n, h, w) of the latent of a clip of ``size`` (1 + k n, H, W), or of an image (H, W).

        UserError: another number of frames, or the factor does not divide the sides; the nearest are named.
        """
        check_divisible("images", size[-2:], self.factor, f"the autoencoder's factor {self.factor}")
        frames = size[0] if len(size) == 3 else 1
        check_frames(frames, self.time_factor)
        later = (frames - 1) // self.time_factor
        return self.latent_channels, 1 + later, size[-2] // self.factor, size[-1] // self.factor

    def encode(self, pixels: Tensor) -> Tensor:
        """Moments (N, 2 c, 1 + n, h, w) of clips (N, C, 1 + k n, H, W) or images (N, C, H, W): means, then log variances."""
        clips = pixels[:, :, None] if pixels.ndim == 4 else pixels
        check_frames(clips.shape[2], self.time_factor)
        return _in_chunks(self.encoder, clips, self.time_factor * CHUNK)

    def decode_raw(self, raw: Tensor) -> Tensor:
        """Clips (N, C, 1 + k n, H, W) of raw latents (N, c, 1 + n, h, w); images (N, C, H, W) of latents of one frame."""
        clips = _in_chunks(self.decoder, raw, CHUNK)
        return clips[:, :, 0] if clips.shape[2] == 1 else clips

    def raw_latent(self, moments: Tensor, noise: Tensor) -> Tensor:
        """Sample the posterior: mean + exp(log variance / 2) noise."""
        mean, log_variance = moments.chunk(2, dim=1)
        return mean + (0.5 * log_variance.clamp(-30, 20)).exp() * noise

    @property
    def bounds(self) -> None:
        """None: learned latents have no fixed range."""
        return None

    def trained_parts(self) -> list[nn.Module]:
        """See ``Autoencoder.trained_parts``."""
        return [self.encoder, self.decoder]

    def record(self) -> dict[str, object]:
        """See ``Autoencoder.record``."""
        settings: dict[str, Any] = {"channels": self.channels, "latent_channels": self.latent_channels}
        settings |= {"widths": list(self.widths), "layers": self.layers, "time_factor": self.time_factor}
        return {"kind": "causal", "config": settings}

    def to_config(self) -> AutoencoderConfig:
        """See ``Autoencoder.to_config``."""
        return AutoencoderConfig(
            kind="causal", latent_channels=self.latent_channels, widths=self.widths, layers=self.layers,
            time_factor=self.time_factor,
        )  # fmt: skip


def check_frames(frames: int, factor: int) -> None:
    """Refuse a number of frames that is not 1 + k n; UserError names the nearest that are."""
    if frames < 1 or (frames - 1) % factor:
        below = (max(frames, 1) - 1) // factor * factor + 1
        raise UserError(
            f"clips of {frames} frames cannot be encoded: the autoencoder takes 1 + {factor} n; nearest: {below} or "
            f"{below + factor}"
        )


def causal_latent_shape(config: AutoencoderConfig, shape: tuple[int, ...]) -> tuple[int, ...]:
    """Shape (c, 1 + n, h, w) of the latent of an image (C, H, W) or a clip (C, 1 + k n, H, W), without an autoencoder."""
    frames = shape[1] if len(shape) == 4 else 1
    later = (frames - 1) // config.time_factor
    return config.latent_channels, 1 + later, shape[-2] // config.factor, shape[-1] // config.factor


def new_causal(config: AutoencoderConfig, channels: int, seed: int) -> CausalAutoencoder:
    """A new autoencoder, with weights drawn from ``seed``.

    UserError: widths, channels, layers or the factor in time are out of range.
    """
    if not config.widths or min(config.widths) < 1 or config.latent_channels < 1 or config.layers < 1:
        raise UserError(f"autoencoder widths {config.widths}, channels and layers must be 1 or more")
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        return CausalAutoencoder(channels, config.latent_channels, config.widths, config.layers, config.time_factor)


def _in_chunks(layers: Layers, x: Tensor, chunk: int) -> Tensor:
    """Layers over a clip, ``chunk`` frames at a time after the first frame; a clip of one chunk keeps no memory."""
    if x.shape[2] <= 1 + chunk:
        return layers(x)
    memory: Memory = {}
    return torch.cat([layers(part, memory) for part in _chunks(x, chunk)], dim=2)


def _chunks(x: Tensor, chunk: int) -> Iterator[Tensor]:
    first, *later = range(1, x.shape[2], chunk)
    yield x[:, :, : first + chunk]
    for start in later:
        yield x[:, :, start : start + chunk]
