"""Per-channel mean and standard deviation of raw latents, streamed in float64."""

from __future__ import annotations

import torch
from torch import Tensor


class ChannelStatistics:
    """Mean and population standard deviation of each channel of batches (N, c, *size)."""

    def __init__(self, channels: int):
        self.count = 0
        self.sum = torch.zeros(channels, dtype=torch.float64)
        self.squares = torch.zeros(channels, dtype=torch.float64)

    def add(self, batch: Tensor) -> None:
        """Add a batch (N, c, *size)."""
        values = batch.detach().cpu().double()
        self.count += values.numel() // values.shape[1]
        axes = (0, *range(2, values.ndim))
        self.sum += values.sum(axes)
        self.squares += values.square().sum(axes)

    def result(self) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation, float64 (c,) each."""
        if not self.count:
            raise ValueError("no latents were added")
        mean = self.sum / self.count
        return mean, (self.squares / self.count - mean.square()).clamp(min=0).sqrt()
