"""The blocks of a U-Net, in the two designs that the paper compares the DiT with.

"adm" is the design of Dhariwal and Nichol (2021, arXiv 2105.05233), "ldm" that of Rombach et al. (2022, arXiv 2112.10752),
as in their public configurations. Images are (N, C, H, W), c (N, E) is the conditioning vector of residual blocks after its
SiLU, and context (N, S, CONTEXT) holds the conditions' vectors as tokens of the cross-attention.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from ditlab.models.attention import SelfAttention, attend

CONTEXT = 512  # width of LDM's context tokens
Resample = Literal["same", "down", "up"]


def group_norm(channels: int, epsilon: float = 1e-5) -> nn.GroupNorm:
    """Group norm (Wu and He 2018) of 32 groups, or fewer so that a group has at least 4 channels.

    A group of one channel would lose the channel's magnitude, most of the information where the image is small.
    """
    most = min(32, max(channels // 4, 1))
    return nn.GroupNorm(next(groups for groups in range(most, 0, -1) if channels % groups == 0), channels, epsilon)


def resampled(x: Tensor, resample: Resample) -> Tensor:
    """Average pooling by 2, nearest-neighbour upsampling by 2, or the identity."""
    if resample == "down":
        return F.avg_pool2d(x, 2)
    return F.interpolate(x, scale_factor=2.0, mode="nearest") if resample == "up" else x


class ResidualBlock(nn.Module):
    """Two convolutions, each after group norm and SiLU, and a shortcut; c modulates between them.

    Args:
        channels: in.
        out: channels out.
        condition: width of c.
        scale_shift: c scales and shifts the second norm, as in ADM; otherwise it is added before that norm.
        resample: ADM resamples here too, before the first convolution and in the shortcut.
    """

    def __init__(self, channels: int, out: int, condition: int, scale_shift: bool, resample: Resample = "same"):
        super().__init__()
        self.scale_shift = scale_shift
        self.resample: Resample = resample
        self.norm1 = group_norm(channels)
        self.convolution1 = nn.Conv2d(channels, out, 3, padding=1)
        self.modulation = nn.Linear(condition, 2 * out if scale_shift else out)
        self.norm2 = group_norm(out)
        self.convolution2 = nn.Conv2d(out, out, 3, padding=1)
        self.shortcut = nn.Identity() if channels == out else nn.Conv2d(channels, out, 1)

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        """Transform x (N, channels, H, W) under c (N, E)."""
        h = self.convolution1(resampled(F.silu(self.norm1(x)), self.resample))  # (N, out, H', W')
        vectors = self.modulation(c)[:, :, None, None]  # (N, 2 out or out, 1, 1)
        if self.scale_shift:
            scale, shift = vectors.chunk(2, dim=1)
            h = torch.addcmul(shift, self.norm2(h), 1 + scale)
        else:
            h = self.norm2(h + vectors)
        return self.shortcut(resampled(x, self.resample)) + self.convolution2(F.silu(h))


class Resampling(nn.Module):
    """LDM's change of size: a convolution of stride 2, or one after doubling."""

    def __init__(self, channels: int, resample: Resample):
        super().__init__()
        self.resample: Resample = resample
        self.convolution = nn.Conv2d(channels, channels, 3, stride=2 if resample == "down" else 1, padding=1)

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        """Resize x (N, channels, H, W)."""
        return self.convolution(resampled(x, self.resample) if self.resample == "up" else x)


class AttentionBlock(nn.Module):
    """ADM's attention of every pixel to every other, added to what it was."""

    def __init__(self, channels: int, heads: int):
        super().__init__()
        self.norm = group_norm(channels)
        self.attention = SelfAttention(channels, heads)

    def forward(self, x: Tensor, context: Tensor | None) -> Tensor:
        """Attend within x (N, C, H, W); ADM has no context."""
        tokens = self.attention(rearrange(self.norm(x), "n c h w -> n (h w) c"))
        return x + rearrange(tokens, "n (h w) c -> n c h w", h=x.shape[2])


class ContextAttention(nn.Module):
    """LDM's attention from tokens (N, T, D) to a context (N, S, E), without biases but for the last Linear."""

    def __init__(self, width: int, context: int, heads: int):
        super().__init__()
        self.heads = heads
        self.query = nn.Linear(width, width, bias=False)
        self.key = nn.Linear(context, width, bias=False)
        self.value = nn.Linear(context, width, bias=False)
        self.projection = nn.Linear(width, width)

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        """Attend from x (N, T, D) to context (N, S, E)."""
        q, k, v = (
            rearrange(each, "n t (h d) -> n h t d", h=self.heads)
            for each in (self.query(x), self.key(context), self.value(context))
        )
        return self.projection(rearrange(attend(q, k, v), "n h t d -> n t (h d)"))


class SpatialTransformer(nn.Module):
    """LDM's transformer block over pixels: self-attention, cross-attention to the context, gated MLP (GEGLU).

    With labels alone the context is one token, so the softmax is 1: the cross-attention's queries and keys, which the
    published network has and the paper counts, have no effect and no gradient.
    """

    def __init__(self, channels: int, heads: int):
        super().__init__()
        self.norm = group_norm(channels, 1e-6)
        self.embedding = nn.Linear(channels, channels)
        self.norm1 = nn.LayerNorm(channels)
        self.attention = ContextAttention(channels, channels, heads)
        self.norm_cross = nn.LayerNorm(channels)
        self.cross_attention = ContextAttention(channels, CONTEXT, heads)
        self.norm2 = nn.LayerNorm(channels)
        self.mlp_up = nn.Linear(channels, 8 * channels)  # half of it values, half of it their gates
        self.mlp_down = nn.Linear(4 * channels, channels)
        self.projection = nn.Linear(channels, channels)

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        """Transform x (N, C, H, W), attending to context (N, S, CONTEXT)."""
        tokens = self.embedding(rearrange(self.norm(x), "n c h w -> n (h w) c"))  # (N, T, C)
        normed = self.norm1(tokens)
        tokens = tokens + self.attention(normed, normed)
        tokens = tokens + self.cross_attention(self.norm_cross(tokens), context)
        values, gates = self.mlp_up(self.norm2(tokens)).chunk(2, dim=-1)  # (N, T, 4 C) each
        tokens = tokens + self.mlp_down(values * F.gelu(gates))
        return x + rearrange(self.projection(tokens), "n (h w) c -> n c h w", h=x.shape[2])


class Block(nn.Module):
    """One block of a U-Net's encoder, middle or decoder: convolutions, then attention in the levels that have it.

    Args:
        convolutions: called with x and c.
        attention: called with x and the context, or None.
        has_skip: whether a feature map of the encoder is concatenated to the input.
    """

    def __init__(self, convolutions: nn.Module, attention: nn.Module | None = None, has_skip: bool = False):
        super().__init__()
        self.convolutions, self.attention, self.has_skip = convolutions, attention, has_skip

    def forward(self, x: Tensor, c: Tensor, context: Tensor | None = None, skip: Tensor | None = None) -> Tensor:
        """Transform x (N, C, H, W), concatenated with ``skip`` (N, C', H, W) where the block has one."""
        if skip is not None:
            x = torch.cat([x, skip], dim=1)
        x = self.convolutions(x, c)
        return x if self.attention is None else self.attention(x, context)

    def compile(self, *args: Any, **options: Any) -> None:
        """Compile this block for its own sizes, as ``nn.Module.compile``.

        The blocks of a U-Net share their code and few of them a graph; of one code the compiler keeps 8 graphs unless told
        otherwise, and runs what comes after uncompiled.
        """
        torch._dynamo.config.recompile_limit = torch._dynamo.config.accumulated_recompile_limit
        super().compile(*args, **{"dynamic": False, **options})
