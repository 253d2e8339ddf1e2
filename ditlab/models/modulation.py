"""How vectors of the condition scale, shift and gate tokens."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ditlab.models.layout import Layout


class ModulationTable(nn.Module):
    """Learned vectors that are added to shared ones: PixArt-alpha's "scale_shift_table" (Chen et al. 2023, adaLN-single)."""

    def __init__(self, vectors: int, width: int):
        super().__init__()
        self.table = nn.Parameter(torch.zeros(vectors * width))

    def forward(self, shared: Tensor) -> Tensor:
        """Shared vectors (N, G, vectors D), each with its own added."""
        return shared + self.table


def modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """Scale and shift tokens (N, L, D) by vectors (N, G, D) of their groups: x * (1 + scale) + shift, in one pass."""
    return torch.addcmul(shift[:, :, None], grouped(x, shift), 1 + scale[:, :, None]).flatten(1, 2)


def gated(x: Tensor, gate: Tensor, change: Tensor) -> Tensor:
    """Add a change (N, L, D) to tokens x, times the gate (N, G, D) of their group."""
    return torch.addcmul(grouped(x, gate), gate[:, :, None], grouped(change, gate)).flatten(1, 2)


def grouped(x: Tensor, vectors: Tensor) -> Tensor:
    """Tokens (N, L, D) as a view of the groups of vectors (N, G, D): (N, G, L / G, D)."""
    return x.unflatten(1, (vectors.shape[1], -1))


def by_token(vectors: Tensor, layout: Layout) -> Tensor:
    """Vectors (samples, 1, D) of a pack, one a token: (R, L, D); of a batch unchanged."""
    return vectors if layout.sample is None else vectors[:, 0][layout.sample]
