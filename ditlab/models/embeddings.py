"""Patches, positions, timesteps and labels as vectors."""

from __future__ import annotations

import math

import torch
from einops import rearrange
from torch import Tensor, nn


def patchify(x: Tensor, patch: int) -> Tensor:
    """Cut images (N, C, H, W) into tokens (N, T, C * patch * patch), row by row, T = (H / patch) * (W / patch)."""
    return rearrange(x, "n c (h p) (w q) -> n (h w) (c p q)", p=patch, q=patch)


def unpatchify(tokens: Tensor, patch: int, height: int) -> Tensor:
    """Put tokens (N, T, patch * patch * C) back into images (N, C, H, W); ``height`` is H in pixels.

    The channel is the fastest axis here and the slowest in ``patchify``: the paper's public layout.
    """
    return rearrange(tokens, "n (h w) (p q c) -> n c (h p) (w q)", p=patch, q=patch, h=height // patch)


def sincos_positions(width: int, rows: int, columns: int) -> Tensor:
    """Fixed 2-D sine-cosine positions, float32 (rows * columns, width).

    The first half of the width encodes the column, the second the row, each as sines then cosines of
    ``position / 10000 ** (2 i / (width / 2))`` (Vaswani et al. 2017, section 3.5; DiT section 3.2).

    Raises:
        ValueError: width is not divisible by 4.
    """
    if width % 4:
        raise ValueError(f"width {width} is not divisible by 4, which 2-D sine-cosine positions need")
    omega = 10000.0 ** -(torch.arange(width // 4, dtype=torch.float64) / (width // 4))

    def axis(positions: Tensor) -> Tensor:
        angles = positions.to(torch.float64)[:, None] * omega
        return torch.cat([angles.sin(), angles.cos()], dim=1)

    row, column = torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij")
    return torch.cat([axis(column.flatten()), axis(row.flatten())], dim=1).float()


def rotary_positions(width: int, rows: int, columns: int) -> Tensor:
    """Cosines and sines that turn a head of ``width`` by its patch's place, float32 (2, rows * columns, width / 2).

    Half of the pairs turn with the column, half with the row, as ``position / 10000 ** (i / (width / 4))`` (Su et al. 2021,
    applied to each axis on its own).

    Raises:
        ValueError: width is not divisible by 4.
    """
    if width % 4:
        raise ValueError(f"width {width} is not divisible by 4, which 2-D rotary positions need")
    omega = 10000.0 ** -(torch.arange(width // 4, dtype=torch.float64) / (width // 4))
    row, column = torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij")
    angles = torch.cat([place.flatten().double()[:, None] * omega for place in (column, row)], dim=1)
    return torch.stack([angles.cos(), angles.sin()]).float()


class TimestepEmbedding(nn.Module):
    """Timesteps (N,) -> (N, width): 256 sinusoidal frequencies, Linear, SiLU, Linear (DiT, section 3.2)."""

    frequencies: Tensor

    def __init__(self, width: int, frequency_width: int = 256, max_period: float = 10000.0):
        super().__init__()
        half = frequency_width // 2
        frequencies = torch.exp(-math.log(max_period) * torch.arange(half, dtype=torch.float32) / half)
        self.register_buffer("frequencies", frequencies, persistent=False)
        self.mlp = nn.Sequential(nn.Linear(frequency_width, width), nn.SiLU(), nn.Linear(width, width))

    def forward(self, t: Tensor) -> Tensor:
        """Embed t (N,), as the schedule shows it to networks: 0 .. 999 for DDPM; fractions are fine."""
        angles = t[:, None].float() * self.frequencies
        return self.mlp(torch.cat([angles.cos(), angles.sin()], dim=1))


class LabelEmbedding(nn.Module):
    """Labels (N,) -> (N, width) from a table of ``classes`` rows and, with ``null_class``, one more for no class."""

    def __init__(self, classes: int, width: int, null_class: bool = True):
        super().__init__()
        self.classes, self.null_class = classes, null_class
        self.table = nn.Embedding(classes + int(null_class), width)

    def forward(self, labels: Tensor) -> Tensor:
        """Look up int64 labels (N,); negative ones are the null class, the row ``classes``."""
        return self.table(torch.where(labels < 0, self.classes, labels))
