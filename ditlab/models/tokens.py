"""Samples cut into patches: tokens with their sizes and, where several samples share a row, their segments."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from ditlab.errors import check_divisible

Size = tuple[int, ...]


@dataclass(frozen=True)
class Tokens:
    """Patches of samples, row by row.

    Attributes:
        x: (R, L, P).
        grids: patches along each axis: of the one size that all rows have, or of each sample of a pack.
        segment: of a pack, int64 (R, L): the sample each token belongs to, -1 for padding; None where each row is a sample.
    """

    x: Tensor
    grids: tuple[Size, ...]
    segment: Tensor | None = None


@dataclass(frozen=True)
class Patching:
    """Cuts samples of any size that the patch divides; the size is read from the sample.

    The temporal patch is 1: compression in time belongs to the autoencoder.

    Attributes:
        patch: side of a patch, in latent pixels.
    """

    patch: int

    def grid(self, size: Size) -> Size:
        """Patches along each axis of a sample of ``size``.

        Raises:
            UserError: the patch does not divide it.
        """
        check_divisible("latents", (size[-2], size[-1]), self.patch, f"patch {self.patch}")
        return *size[:-2], size[-2] // self.patch, size[-1] // self.patch

    def to_tokens(self, x: Tensor | Sequence[Tensor], length: int = 0) -> Tokens:
        """Cut a batch (N, C, *size) into rows, or samples (C, *size) of several sizes into one row, a pack.

        The row of a pack is padded to ``length`` tokens, so that packs of other sizes run the same compiled graph.

        The channel is the slowest axis of a patch here and the fastest in ``to_sample``: the paper's public layout.
        """
        if isinstance(x, Tensor):
            grid = self.grid(tuple(x.shape[2:]))
            return Tokens(self._cut(x), (grid,))
        grids = tuple(self.grid(tuple(sample.shape[1:])) for sample in x)
        cut = [self._cut(sample[None])[0] for sample in x]
        lengths = torch.tensor([len(tokens) for tokens in cut], device=cut[0].device)
        segment = torch.repeat_interleave(torch.arange(len(cut), device=lengths.device), lengths)
        more = max(length - len(segment), 0)
        row, segment = F.pad(torch.cat(cut), (0, 0, 0, more)), F.pad(segment, (0, more), value=-1)
        return Tokens(row[None], grids, segment[None])

    def to_sample(self, tokens: Tokens) -> Tensor | list[Tensor]:
        """Put tokens of (R, L, patch * patch * C) back together: (N, C, *size), or a list of (C, *size) of a pack."""
        if tokens.segment is None:
            return self._join(tokens.x, tokens.grids[0])
        return [self._join(tokens.x[tokens.segment == index][None], grid)[0] for index, grid in enumerate(tokens.grids)]

    def _cut(self, x: Tensor) -> Tensor:
        if x.ndim == 4:
            return rearrange(x, "n c (h p) (w q) -> n (h w) (c p q)", p=self.patch, q=self.patch)
        return rearrange(x, "n c f (h p) (w q) -> n (f h w) (c p q)", p=self.patch, q=self.patch)

    def _join(self, x: Tensor, grid: Size) -> Tensor:
        sides = {"p": self.patch, "q": self.patch, "h": grid[-2], "w": grid[-1]}
        if len(grid) == 2:
            return rearrange(x, "n (h w) (p q c) -> n c (h p) (w q)", **sides)
        return rearrange(x, "n (f h w) (p q c) -> n c f (h p) (w q)", f=grid[0], **sides)
