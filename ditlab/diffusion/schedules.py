"""Noise schedules: x_t = alpha(t) x0 + sigma(t) epsilon for t in [0, 1], noise at 1."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn


class Schedule(nn.Module, ABC):
    """A noise schedule, called as ``alpha, sigma = schedule(t)``."""

    steps: int
    """Length of the table of a discrete schedule; 0 for a continuous one."""
    zero_snr: bool = False
    """Whether the last row of the table is pure noise."""

    @abstractmethod
    def forward(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """Alpha and sigma, float64, of the shape of times t in [0, 1]: (N,), or (N, F) for a time a frame."""

    @abstractmethod
    def network_time(self, t: Tensor) -> Tensor:
        """The input of the network's timestep embedding for times t, of t's shape."""


class LinearBeta(Schedule):
    """DDPM's table: 1000 betas linear from 1e-4 to 2e-2 (Ho et al. 2020, section 4), variance preserving.

    Time t is the table's row t * (steps - 1), rounded to the nearest.

    Args:
        steps: of the table.
        first: beta.
        last: beta.
        zero_snr: shift and scale sqrt(alpha_bar) so that the last is exactly 0, pure noise, and the first stays (Lin et al.
            2023, algorithm 1).
    """

    alpha_bar: Tensor

    def __init__(self, steps: int = 1000, first: float = 1e-4, last: float = 2e-2, *, zero_snr: bool = False):
        super().__init__()
        self.steps, self.zero_snr = steps, zero_snr
        betas = torch.linspace(first, last, steps, dtype=torch.float64)
        alpha_bar = torch.cumprod(1 - betas, dim=0)
        if zero_snr:
            alpha = alpha_bar.sqrt()
            alpha_bar = ((alpha - alpha[-1]) * alpha[0] / (alpha[0] - alpha[-1])).square()
        self.register_buffer("alpha_bar", alpha_bar, persistent=False)

    def index(self, t: Tensor) -> Tensor:
        """The rows, int64, of times t."""
        return (t.to(torch.float64) * (self.steps - 1)).round().long()

    def forward(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """Alpha = sqrt(alpha_bar), sigma = sqrt(1 - alpha_bar)."""
        alpha_bar = self.alpha_bar[self.index(t)]
        return alpha_bar.sqrt(), (1 - alpha_bar).sqrt()

    def network_time(self, t: Tensor) -> Tensor:
        """The row, 0 .. steps - 1, as in the paper's code."""
        return self.index(t).float()


class RectifiedFlow(Schedule):
    """Straight lines from data to noise: x_t = (1 - t) x0 + t epsilon (Liu et al. 2022; SiT's linear path).

    Args:
        time_scale: network time at t = 1: 1000 spans the range of the sinusoidal embedding, 1 is SiT's and LightningDiT's.
    """

    steps = 0

    def __init__(self, time_scale: float = 1000.0):
        super().__init__()
        self.time_scale = time_scale

    def forward(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """Alpha = 1 - t, sigma = t."""
        t = t.to(torch.float64)
        return 1 - t, t

    def network_time(self, t: Tensor) -> Tensor:
        """time_scale * t."""
        return t * self.time_scale


SCHEDULES: dict[str, type[Schedule]] = {"linear-beta": LinearBeta, "rectified-flow": RectifiedFlow}
