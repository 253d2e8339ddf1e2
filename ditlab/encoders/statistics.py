"""Per-channel mean and standard deviation of raw latents, streamed in float64."""

from __future__ import annotations

import torch
from torch import Tensor


class ChannelStatistics:
    """Adds up batches (N, c, h, w) and gives each channel's mean and population standard deviation."""

    def __init__(self, channels: int):
        self.count = 0
        self.sum = torch.zeros(channels, dtype=torch.float64)
        self.squares = torch.zeros(channels, dtype=torch.float64)

    def add(self, batch: Tensor) -> None:
        """Add a batch (N, c, h, w)."""
        values = batch.detach().cpu().double()
        self.count += values.numel() // values.shape[1]
        self.sum += values.sum(dim=(0, 2, 3))
        self.squares += values.square().sum(dim=(0, 2, 3))

    def result(self) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation, float64 (c,) each.

        Raises:
            ValueError: nothing was added.
        """
        if not self.count:
            raise ValueError("statistics of no latents")
        mean = self.sum / self.count
        return mean, (self.squares / self.count - mean.square()).clamp(min=0).sqrt()
