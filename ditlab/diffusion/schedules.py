"""How much data and noise there is at time t: x_t = alpha(t) x0 + sigma(t) epsilon, t in [0, 1], noise at 1."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn


class Schedule(nn.Module, ABC):
    """A noise schedule, called as ``alpha, sigma = schedule(t)``."""

    steps: int
    """Length of the table of a discrete schedule; 0 for a continuous one."""

    @abstractmethod
    def forward(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """Alpha and sigma, float64 (N,), at times t (N,) in [0, 1]."""

    def network_time(self, t: Tensor) -> Tensor:
        """The number networks are shown for t: 0 .. 999, the range of their sinusoidal embedding."""
        return t * 1000.0


class LinearBeta(Schedule):
    """DDPM's table: 1000 betas linear from 1e-4 to 2e-2 (Ho et al. 2020, section 4), variance preserving.

    Time t is the table's row t * (steps - 1), the nearest one.
    """

    alpha_bar: Tensor

    def __init__(self, steps: int = 1000, first: float = 1e-4, last: float = 2e-2):
        super().__init__()
        self.steps = steps
        betas = torch.linspace(first, last, steps, dtype=torch.float64)
        self.register_buffer("alpha_bar", torch.cumprod(1 - betas, dim=0), persistent=False)

    def index(self, t: Tensor) -> Tensor:
        """The rows, int64 (N,), of times t (N,)."""
        return (t.to(torch.float64) * (self.steps - 1)).round().long()

    def forward(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """Square roots of alpha-bar and of one minus it."""
        alpha_bar = self.alpha_bar[self.index(t)]
        return alpha_bar.sqrt(), (1 - alpha_bar).sqrt()

    def network_time(self, t: Tensor) -> Tensor:
        """The row itself, as the paper's networks are shown it."""
        return self.index(t).float()


class RectifiedFlow(Schedule):
    """Straight lines from data to noise: x_t = (1 - t) x0 + t epsilon (Liu et al. 2022; SiT's linear path)."""

    steps = 0

    def forward(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """One minus t, and t."""
        t = t.to(torch.float64)
        return 1 - t, t


SCHEDULES: dict[str, type[Schedule]] = {"linear-beta": LinearBeta, "rectified-flow": RectifiedFlow}
