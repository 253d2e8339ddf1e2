"""Classifier-free guidance (Ho and Salimans 2022): away from what the network says when told nothing."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ditlab.diffusion.denoiser import Denoise, Point, Prediction
from ditlab.errors import UserError
from ditlab.models import Condition


@dataclass(frozen=True)
class GuidanceConfig:
    """How strongly and where samples are pushed towards their label."""

    scale: float = 1.0
    """1 is off; above, samples fit their label better and vary less."""
    low: float = 0.0
    """Guide only at times t of at least this (1 is noise)."""
    high: float = 1.0
    """Guide only at times t of at most this (Kynkaanniemi et al. 2024)."""
    channels: int = 0
    """Guide only the first so many channels; 0 is all. 3 of 4 latent channels is what DiT's published numbers did."""

    def check(self) -> None:
        """Raise UserError where a value makes no sense."""
        if not 0 <= self.scale < 1000:
            raise UserError(f"guidance scale {self.scale} is out of range; 1 is off, 1.5 to 4 is usual")
        if not 0 <= self.low <= self.high <= 1:
            raise UserError(f"guidance interval {self.low} to {self.high} must lie in 0 to 1, the lower end first")
        if self.channels < 0:
            raise UserError(f"guidance on {self.channels} channels: 0 is all, 3 the published behaviour")


class Between:
    """A denoiser told two things of each image, its predictions mixed; of noises, sums of scores (Liu et al. 2022).

    Args:
        denoise: the denoiser, guided or not.
        other: what the batch is told besides its own condition.
        weight: of the other, (N, 1, 1, 1): 0 is the batch's own condition alone, 1 the other.
    """

    def __init__(self, denoise: Denoise, other: Condition, weight: Tensor):
        self.denoise, self.other, self.weight = denoise, other, weight

    def __call__(self, x: Tensor, point: Point, condition: Condition) -> Prediction:
        """Predict under both in one batched pass."""
        both = self.denoise(torch.cat([x, x]), point, condition.join(self.other))
        variance = None if both.variance is None else self._mixed(both.variance)
        return Prediction(self._mixed(both.x0), self._mixed(both.epsilon), variance)

    def _mixed(self, both: Tensor) -> Tensor:
        own, other = both.chunk(2)
        return torch.lerp(own, other, self.weight)


class ClassifierFree:
    """A denoiser guided by itself: unconditional + scale * (conditional - unconditional), in one batched pass."""

    def __init__(self, denoise: Denoise, config: GuidanceConfig):
        config.check()
        self.denoise, self.config = denoise, config

    def __call__(self, x: Tensor, point: Point, condition: Condition) -> Prediction:
        """Predict under guidance; outside its interval the network runs once, on the condition alone."""
        config = self.config
        if config.scale == 1 or not config.low <= point.t <= config.high:
            return self.denoise(x, point, condition)
        both = self.denoise(torch.cat([x, x]), point, condition.join(condition.null()))
        (x0, x0_null), (epsilon, epsilon_null) = both.x0.chunk(2), both.epsilon.chunk(2)
        variance = None if both.variance is None else both.variance.chunk(2)[0]
        return Prediction(self._push(x0, x0_null), self._push(epsilon, epsilon_null), variance)

    def _push(self, told: Tensor, untold: Tensor) -> Tensor:
        guided = torch.lerp(untold, told, self.config.scale)
        if 0 < self.config.channels < told.shape[1]:
            guided = torch.cat([guided[:, : self.config.channels], told[:, self.config.channels :]], dim=1)
        return guided
