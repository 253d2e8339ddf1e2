"""A network with the schedule and the target it was trained for: what it believes of a noised image."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from ditlab.diffusion.corruption import solve
from ditlab.diffusion.schedules import Schedule
from ditlab.models import Condition


@dataclass(frozen=True)
class Point:
    """A place on the schedule, as plain numbers, so that a step's coefficients cost no tensor.

    Attributes:
        t: the time, 1 noise, 0 data.
        alpha: how much data there is.
        sigma: how much noise there is.
        shown: what the network is shown for t.
    """

    t: float
    alpha: float
    sigma: float
    shown: float


CLEAN = Point(t=0.0, alpha=1.0, sigma=0.0, shown=0.0)  # where every sampler ends: data without noise


def points(schedule: Schedule, times: list[float]) -> list[Point]:
    """The schedule at ``times``."""
    device = next((buffer.device for buffer in schedule.buffers()), torch.device("cpu"))
    t = torch.tensor(times, dtype=torch.float64, device=device)
    alpha, sigma = (values.tolist() for values in schedule(t))
    shown = schedule.network_time(t).tolist()
    return [Point(*row) for row in zip(times, alpha, sigma, shown, strict=True)]


@dataclass(frozen=True)
class Prediction:
    """What a denoiser says of x (N, C, H, W).

    Attributes:
        x0: the data (N, C, H, W).
        epsilon: the noise (N, C, H, W).
        variance: where learned, how far the log variance of a step lies from the posterior's (0) to beta's (1).
    """

    x0: Tensor
    epsilon: Tensor
    variance: Tensor | None = None


Denoise = Callable[[Tensor, Point, Condition], Prediction]


class Denoiser(nn.Module):
    """Wraps a network; called as ``denoiser(x, point, condition)``."""

    def __init__(self, network: nn.Module, schedule: Schedule, target: str, learned_variance: bool):
        super().__init__()
        self.network, self.schedule = network, schedule
        self.target, self.learned_variance, self.bf16 = target, learned_variance, False

    def cast(self, bf16: bool) -> Denoiser:
        """The same denoiser with its network's matrix products in bfloat16, or in float32."""
        other = copy.copy(self)
        other.bf16 = bf16
        return other

    def forward(self, x: Tensor, point: Point, condition: Condition) -> Prediction:
        """Predict from noised latents x (N, C, H, W) at one point of the schedule."""
        shown = torch.full((x.shape[0],), point.shown, device=x.device)
        with torch.autocast(x.device.type, torch.bfloat16, enabled=self.bf16):
            output = self.network(x, shown, condition)
        output = output.to(x.dtype, copy=True)  # a compiled network's own output is overwritten by its next call
        variance = None
        if self.learned_variance:
            output, variance = output.chunk(2, dim=1)
            variance = (variance + 1) / 2
        x0, epsilon = solve(self.target, output, x, point.alpha, point.sigma)
        return Prediction(x0, epsilon, variance)


class Bounded:
    """Keeps the predicted data within the range data can have, where it has one (pixels have, latents do not).

    Args:
        denoise: the denoiser, guidance included, since guidance is what pushes data out of range.
        low: the smallest value of each channel, (C, 1, 1).
        high: the largest value of each channel, (C, 1, 1).
    """

    def __init__(self, denoise: Denoise, low: Tensor, high: Tensor):
        self.denoise, self.low, self.high = denoise, low, high

    def __call__(self, x: Tensor, point: Point, condition: Condition) -> Prediction:
        """Predict, clamp the data, and take the noise that goes with it."""
        prediction = self.denoise(x, point, condition)
        x0 = prediction.x0.clamp(self.low, self.high)
        return replace(prediction, x0=x0, epsilon=(x - point.alpha * x0) / point.sigma)
