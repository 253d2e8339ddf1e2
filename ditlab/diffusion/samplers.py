"""From noise to data: one loop, each method one short step between two points of the schedule.

A step sees the denoiser, x, the point it is at and the point it goes to. Everything is written in alpha and sigma, so
each method runs on every schedule.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from ditlab.diffusion.denoiser import CLEAN, Denoise, Point, Prediction, points
from ditlab.diffusion.schedules import Schedule
from ditlab.errors import UserError, nearest
from ditlab.models import Condition

Noise = Callable[[], Tensor]


@dataclass(frozen=True)
class State:
    """A step of sampling; tensors (N, C, H, W).

    Attributes:
        before: what the step began with.
        x0: the data the model expected then.
        x: where the step led.
        here: the point of ``before``.
        there: the point of ``x``.
    """

    before: Tensor
    x0: Tensor
    x: Tensor
    here: Point
    there: Point


class Sampler(ABC):
    """A method. One object serves one run, since multistep methods remember."""

    @abstractmethod
    def times(self, schedule: Schedule, steps: int) -> list[float]:
        """The times, falling, at which the network is asked; the last step goes on to clean data."""

    @abstractmethod
    def step(
        self, denoise: Denoise, x: Tensor, condition: Condition, here: Point, there: Point, noise: Noise
    ) -> tuple[Tensor, Tensor]:
        """Go from ``here`` to ``there``; gives the new x and the predicted data, each (N, C, H, W)."""


def even_times(schedule: Schedule, steps: int) -> list[float]:
    """``steps`` times, evenly spaced from 1 downwards, 0 left out; on a table, its nearest rows."""
    rows = schedule.steps - 1
    if rows < 0:
        return [1 - k / steps for k in range(steps)]
    last = 0 if steps > rows else 1  # as many steps as rows: every row, the first one too
    stride = rows / (steps - 1 + last)
    return [round(k * stride) / rows for k in range(steps - 1 + last, last - 1, -1)]


class DDPM(Sampler):
    """Ancestral sampling on a respaced schedule (Ho et al. 2020; Nichol and Dhariwal 2021, section 3.1 and 4).

    Between any two points the posterior q(x_there | x_here, x0) is Gaussian; the step's variance lies between the
    posterior's own and beta, where the network's learned fraction says, or at the posterior's.
    """

    def times(self, schedule: Schedule, steps: int) -> list[float]:
        """Rows from the table's last to its first, both included, evenly spaced, rounded (n = 10: 999, 888, .., 0)."""
        rows = schedule.steps - 1
        if rows < 0:
            return even_times(schedule, steps)
        if steps == 1:
            return [1.0]
        stride = rows / (steps - 1)
        return [round(k * stride) / rows for k in reversed(range(steps))]

    def step(
        self, denoise: Denoise, x: Tensor, condition: Condition, here: Point, there: Point, noise: Noise
    ) -> tuple[Tensor, Tensor]:
        """Draw from the learned reverse Gaussian."""
        prediction = denoise(x, here, condition)
        ratio = here.alpha / there.alpha
        beta = here.sigma**2 - (ratio * there.sigma) ** 2  # variance of q(x_here | x_there)
        from_x, from_x0 = ratio * (there.sigma / here.sigma) ** 2, there.alpha * beta / here.sigma**2
        mean = from_x * x + from_x0 * prediction.x0
        if there.sigma == 0:
            return mean, prediction.x0
        log_posterior, log_beta = math.log(beta * (there.sigma / here.sigma) ** 2), math.log(beta)
        if prediction.variance is None:
            return mean + math.exp(0.5 * log_posterior) * noise(), prediction.x0
        log_variance = log_posterior + prediction.variance * (log_beta - log_posterior)
        return mean + (0.5 * log_variance).exp() * noise(), prediction.x0


class DDIM(Sampler):
    """The deterministic sampler of Song et al. 2020, equation 12 with eta 0."""

    def times(self, schedule: Schedule, steps: int) -> list[float]:
        """On a table, evenly from row 0, rounded down: a whole stride as in the public code where one fits (900, .., 0)."""
        if schedule.steps == 0:
            return even_times(schedule, steps)
        rows = [k * schedule.steps // steps for k in reversed(range(steps))]
        return [row / (schedule.steps - 1) for row in rows]

    def step(
        self, denoise: Denoise, x: Tensor, condition: Condition, here: Point, there: Point, noise: Noise
    ) -> tuple[Tensor, Tensor]:
        """Keep the predicted data and noise, mix them anew."""
        prediction = denoise(x, here, condition)
        return _mix(prediction, there), prediction.x0


class Euler(DDIM):
    """Euler's method for the probability-flow ODE dx = x0 d(alpha) + epsilon d(sigma), over evenly spaced times.

    Along alpha and sigma the step is DDIM's to the letter; what differs is the grid of a discrete schedule, which here
    starts at its noisiest row.
    """

    def times(self, schedule: Schedule, steps: int) -> list[float]:
        """Evenly spaced from 1."""
        return even_times(schedule, steps)


class Heun(Sampler):
    """The trapezoidal rule for the same ODE: Euler there, ask again, average (Karras et al. 2022, algorithm 1).

    The network is asked twice a step, once in the last.
    """

    def times(self, schedule: Schedule, steps: int) -> list[float]:
        """Evenly spaced from 1."""
        return even_times(schedule, steps)

    def step(
        self, denoise: Denoise, x: Tensor, condition: Condition, here: Point, there: Point, noise: Noise
    ) -> tuple[Tensor, Tensor]:
        """Move along the mean of the two directions."""
        first = denoise(x, here, condition)
        ahead = _mix(first, there)
        if there.sigma == 0:
            return ahead, first.x0
        second = denoise(ahead, there, condition)
        x0, epsilon = (first.x0 + second.x0) / 2, (first.epsilon + second.epsilon) / 2
        return x + (there.alpha - here.alpha) * x0 + (there.sigma - here.sigma) * epsilon, second.x0


class DPMSolver(Sampler):
    """DPM-Solver++ 2M (Lu et al. 2022, algorithm 2): second order from the last two predictions of x0.

    The first step, and the last one, onto clean data, are of first order.
    """

    def __init__(self) -> None:
        self.last: tuple[Tensor, float] | None = None  # the previous x0 and its half log signal-to-noise ratio

    def times(self, schedule: Schedule, steps: int) -> list[float]:
        """Evenly spaced from 1."""
        return even_times(schedule, steps)

    def step(
        self, denoise: Denoise, x: Tensor, condition: Condition, here: Point, there: Point, noise: Noise
    ) -> tuple[Tensor, Tensor]:
        """Integrate the linear part exactly and the rest to second order, in the half log signal-to-noise ratio."""
        x0 = denoise(x, here, condition).x0
        direction, log_ratio = x0, _log_ratio(here)
        if there.sigma == 0:
            return x0, x0
        h = _log_ratio(there) - log_ratio
        if self.last is not None:
            previous, previous_ratio = self.last
            direction = torch.lerp(x0, previous, -h / (2 * (log_ratio - previous_ratio)))
        self.last = (x0, log_ratio)
        return (there.sigma / here.sigma) * x - there.alpha * math.expm1(-h) * direction, x0


def _mix(prediction: Prediction, point: Point) -> Tensor:
    return point.alpha * prediction.x0 + point.sigma * prediction.epsilon


def _log_ratio(point: Point) -> float:
    return math.log(point.alpha / point.sigma) if point.alpha > 0 else -math.inf


SAMPLERS: dict[str, type[Sampler]] = {"ddpm": DDPM, "ddim": DDIM, "euler": Euler, "heun": Heun, "dpm-solver": DPMSolver}


def check(sampler: str, schedule: Schedule, steps: int) -> None:
    """Raise UserError where no such sampler, or not so many steps, are to be had."""
    if sampler not in SAMPLERS:
        raise UserError(f"unknown sampler {sampler!r}; {nearest(sampler, SAMPLERS)}")
    if steps < 1 or (schedule.steps and steps > schedule.steps):
        most = f" to {schedule.steps}, the steps the model was trained with" if schedule.steps else " or more"
        raise UserError(f"{steps} sampling steps: must be 1{most}")


def sample(
    denoise: Denoise, schedule: Schedule, x: Tensor, condition: Condition, sampler: str, steps: int, noise: Noise
) -> Iterator[State]:
    """Denoise x (N, C, H, W), pure noise, step by step.

    Args:
        denoise: the denoiser, guided or not.
        schedule: the schedule it was trained for.
        x: standard normal noise.
        condition: the batch's labels.
        sampler: one of ``SAMPLERS``.
        steps: how many steps.
        noise: gives fresh standard normal noise (N, C, H, W) a call; only DDPM asks.

    Yields:
        The state after each step; the last one's x is the sample.

    Raises:
        UserError: unknown sampler, or a number of steps the schedule has not.
    """
    check(sampler, schedule, steps)
    method = SAMPLERS[sampler]()
    path = [*points(schedule, method.times(schedule, steps)), CLEAN]
    for here, there in pairwise(path):
        before = x
        x, x0 = method.step(denoise, before, condition, here, there, noise)
        yield State(before, x0, x, here, there)
