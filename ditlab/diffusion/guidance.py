"""Guidance: which rows a network evaluates for a query of a sampler, and how their predictions are combined."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ditlab.diffusion.denoiser import Prediction, Rows, ScheduleStep
from ditlab.diffusion.predictions import noise_of
from ditlab.errors import UserError
from ditlab.models import Condition


@dataclass(frozen=True)
class Query:
    """A sampler's evaluation of the network: x_t (N, C, *size) at t, on the way to s."""

    x_t: Tensor
    t: ScheduleStep
    s: ScheduleStep


@dataclass(frozen=True)
class GuidanceConfig:
    """Classifier-free guidance (Ho and Salimans 2022)."""

    scale: float = 1.0
    """1 is off; higher values fit the condition better and vary less."""
    low: float = 0.0
    """Guide only at times t of at least this (1 is noise)."""
    high: float = 1.0
    """Guide only at times t of at most this (Kynkaanniemi et al. 2024)."""
    channels: int = 0
    """Guide only the first channels, as many; 0 is all. 3 of 4 latent channels is what DiT's published numbers used."""

    def check(self) -> None:
        """Raise UserError where a value is out of range."""
        if not 0 <= self.scale < 1000:
            raise UserError(f"guidance scale {self.scale} is out of range; 1 is off, 1.5 to 4 is usual")
        if not 0 <= self.low <= self.high <= 1:
            raise UserError(f"guidance interval {self.low} to {self.high} must lie in 0 to 1, the lower end first")
        if self.channels < 0:
            raise UserError(f"guidance on {self.channels} channels: 0 is all, 3 the published behaviour")


class Guidance:
    """No guidance: the rows of a query are its own, under its own condition."""

    def expand(self, query: Query, condition: Condition) -> Rows:
        """The rows to evaluate, (M, C, *size), for a query of N samples under a condition of N."""
        return Rows(query.x_t, query.t, query.s, condition)

    def combine(self, query: Query, prediction: Prediction) -> Prediction:
        """The prediction of the query's N samples from that of its M rows."""
        return prediction


class ClassifierFreeGuidance(Guidance):
    """unconditional + scale * (conditional - unconditional), in one batched pass; outside its interval no guidance.

    Args:
        config: scale, interval and channels.
        unconditional: the condition to extrapolate from, of one sample; by default ``condition.null()``. A negative
            prompt is another value.
    """

    def __init__(self, config: GuidanceConfig, unconditional: Condition | None = None):
        config.check()
        self.config, self.unconditional = config, unconditional

    def _guides(self, query: Query) -> bool:
        return self.config.scale != 1 and self.config.low <= query.t.t <= self.config.high

    def expand(self, query: Query, condition: Condition) -> Rows:
        """Conditional rows, then unconditional ones."""
        if not self._guides(query):
            return super().expand(query, condition)
        if self.unconditional is None:
            unconditional = condition.null()
        else:
            unconditional = self.unconditional.select(
                torch.zeros(len(query.x_t), dtype=torch.int64, device=query.x_t.device)
            )
        t, s = _doubled(query.t), _doubled(query.s)
        return Rows(torch.cat([query.x_t, query.x_t]), t, s, condition.cat(unconditional))

    def combine(self, query: Query, prediction: Prediction) -> Prediction:
        """Extrapolate from the unconditional to the conditional prediction."""
        if not self._guides(query):
            return prediction
        variance = None if prediction.variance is None else prediction.variance.chunk(2)[0]
        return Prediction(self._extrapolate(prediction.x0), self._extrapolate(prediction.epsilon), variance)

    def _extrapolate(self, both: Tensor) -> Tensor:
        conditional, unconditional = both.chunk(2)
        guided, channels = torch.lerp(unconditional, conditional, self.config.scale), self.config.channels
        if 0 < channels < conditional.shape[1]:
            guided = torch.cat([guided[:, :channels], conditional[:, channels:]], dim=1)
        return guided


class ClampedX0(Guidance):
    """Clamps predicted data to the range of the data, where it has one (pixels do, latents do not).

    Args:
        guidance: clamped after it, since guidance is what pushes data out of range.
        low: the smallest value of each channel, (C, 1, 1).
        high: the largest value of each channel, (C, 1, 1).
    """

    def __init__(self, guidance: Guidance, low: Tensor, high: Tensor):
        self.guidance, self.low, self.high = guidance, low, high

    def expand(self, query: Query, condition: Condition) -> Rows:
        """The guidance's rows."""
        return self.guidance.expand(query, condition)

    def combine(self, query: Query, prediction: Prediction) -> Prediction:
        """The guidance's prediction with x0 clamped and epsilon to match."""
        prediction = self.guidance.combine(query, prediction)
        x0 = prediction.x0.clamp(self.low, self.high)
        return replace(prediction, x0=x0, epsilon=noise_of(query.x_t, x0, query.t.alpha, query.t.sigma))


class Interpolated(Guidance):
    """Predictions under two conditions, mixed; of noise, a sum of scores (Liu et al. 2022).

    Args:
        guidance: applied under each condition.
        other: the second condition, of the same batch.
        weight: of the second, (N, 1, 1, 1): 0 is the first condition alone, 1 the second.
    """

    def __init__(self, guidance: Guidance, other: Condition, weight: Tensor):
        self.guidance, self.other, self.weight = guidance, other, weight

    def expand(self, query: Query, condition: Condition) -> Rows:
        """The guidance's rows under both conditions, in one batched pass."""
        return self.guidance.expand(self._both(query), condition.cat(self.other))

    def combine(self, query: Query, prediction: Prediction) -> Prediction:
        """Linear interpolation of the two predictions."""
        both = self.guidance.combine(self._both(query), prediction)
        variance = None if both.variance is None else self._mix(both.variance)
        return Prediction(self._mix(both.x0), self._mix(both.epsilon), variance)

    @staticmethod
    def _both(query: Query) -> Query:
        return Query(torch.cat([query.x_t, query.x_t]), _doubled(query.t), _doubled(query.s))

    def _mix(self, both: Tensor) -> Tensor:
        first, second = both.chunk(2)
        return torch.lerp(first, second, self.weight)


def _doubled(step: ScheduleStep) -> ScheduleStep:
    """A step of twice the batch; plain numbers serve any batch."""

    def double(value: float | Tensor) -> float | Tensor:
        return torch.cat([value, value]) if isinstance(value, Tensor) else value

    alpha, sigma, network_time = (double(value) for value in (step.alpha, step.sigma, step.network_time))
    return ScheduleStep(step.t, alpha, sigma, network_time, step.is_data)
