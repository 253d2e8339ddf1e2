"""Samplers: from noise to data in steps from t to s, each written in alpha and sigma, so that it runs on every schedule.

A step is a generator of network queries: ``prediction = yield Query(x_t, t, s)``. What drives it decides how queries are
evaluated: one at a time, or together with those of other samplings.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from torch import Tensor, lerp

from ditlab.diffusion.denoiser import DATA, Denoiser, Prediction, Rows, ScheduleStep, schedule_steps
from ditlab.diffusion.guidance import Guidance, Query
from ditlab.diffusion.schedules import Schedule
from ditlab.diffusion.time_grid import TimeGrid
from ditlab.errors import UserError, nearest
from ditlab.models import Condition

Noise = Callable[[], Tensor]
Step = Generator[Query, Prediction, tuple[Tensor, Prediction, Any]]


@dataclass(frozen=True)
class State:
    """A finished step; tensors (N, C, *size).

    Attributes:
        x_t: the sample at the step's beginning.
        x0: the predicted data.
        x_s: the sample at the step's end.
        t: of ``x_t``.
        s: of ``x_s``.
    """

    x_t: Tensor
    x0: Tensor
    x_s: Tensor
    t: ScheduleStep
    s: ScheduleStep


class Sampler(ABC):
    """A method. It keeps no state: what a multistep method remembers is the ``memory`` of its steps."""

    grid = TimeGrid()
    """The times it uses by default."""

    @abstractmethod
    def step(self, x_t: Tensor, t: ScheduleStep, s: ScheduleStep, noise: Noise, memory: Any) -> Step:
        """A step from x_t (N, C, *size) at t to s: yields queries, returns x_s, the last prediction and the memory.

        ``noise()`` is standard normal, (N, C, *size); ``memory`` is what the step before returned, None at first.
        """


class DDPM(Sampler):
    """Ancestral sampling on a respaced schedule (Ho et al. 2020; Nichol and Dhariwal 2021, sections 3.1 and 4).

    Between any two times the posterior q(x_s | x_t, x0) is Gaussian, with mean
    (alpha_t / alpha_s) (sigma_s / sigma_t)^2 x_t + alpha_s (beta / sigma_t^2) x0 and
    beta = sigma_t^2 - (alpha_t sigma_s / alpha_s)^2. Its log variance lies between that of the posterior,
    beta (sigma_s / sigma_t)^2, and that of beta, where the network's learned fraction says, or is the posterior's.
    """

    grid = TimeGrid("linspace")

    def step(self, x_t: Tensor, t: ScheduleStep, s: ScheduleStep, noise: Noise, memory: Any) -> Step:
        """A draw from the learned reverse Gaussian."""
        prediction = yield Query(x_t, t, s)
        ratio = t.alpha / s.alpha
        beta = t.sigma**2 - (ratio * s.sigma) ** 2  # variance of q(x_t | x_s)
        from_x, from_x0 = ratio * (s.sigma / t.sigma) ** 2, s.alpha * beta / t.sigma**2
        mean = from_x * x_t + from_x0 * prediction.x0
        if s.is_data:
            return mean, prediction, None
        log_posterior, log_beta = math.log(beta * (s.sigma / t.sigma) ** 2), math.log(beta)
        if prediction.variance is None:
            return mean + math.exp(0.5 * log_posterior) * noise(), prediction, None
        log_variance = log_posterior + prediction.variance * (log_beta - log_posterior)
        return mean + (0.5 * log_variance).exp() * noise(), prediction, None


class DDIM(Sampler):
    """x_s = alpha_s x0 + sigma_s epsilon (Song et al. 2020, equation 12 with eta 0)."""

    grid = TimeGrid("leading")

    def step(self, x_t: Tensor, t: ScheduleStep, s: ScheduleStep, noise: Noise, memory: Any) -> Step:
        """The deterministic step."""
        prediction = yield Query(x_t, t, s)
        return _move(prediction, s), prediction, None


class Euler(DDIM):
    """Euler's method for the probability-flow ODE dx = x0 d(alpha) + epsilon d(sigma), over evenly spaced times.

    Along alpha and sigma this is DDIM's step; the difference is the grid on a discrete schedule, which starts at the noisiest
    row.
    """

    grid = TimeGrid()


class Heun(Sampler):
    """The trapezoidal rule for the same ODE: an Euler step, a second evaluation at its end, the mean of the two directions.

    Karras et al. 2022, algorithm 1. Two evaluations a step, one in the last.
    """

    def step(self, x_t: Tensor, t: ScheduleStep, s: ScheduleStep, noise: Noise, memory: Any) -> Step:
        """x_s = x_t + (alpha_s - alpha_t) x0 + (sigma_s - sigma_t) epsilon, x0 and epsilon the means of two predictions."""
        first = yield Query(x_t, t, s)
        x_s = _move(first, s)
        if s.is_data:
            return x_s, first, None
        second = yield Query(x_s, s, s)
        x0, epsilon = (first.x0 + second.x0) / 2, (first.epsilon + second.epsilon) / 2
        return x_t + (s.alpha - t.alpha) * x0 + (s.sigma - t.sigma) * epsilon, second, None


class DPMSolver(Sampler):
    """DPM-Solver++ 2M (Lu et al. 2022, algorithm 2): second order from the last two predictions of x0.

    With lambda = log(alpha / sigma) and h = lambda_s - lambda_t, x_s = (sigma_s / sigma_t) x_t - alpha_s (exp(-h) - 1) D,
    where D extrapolates x0 from the last two steps. The first step, and the last one, onto data, are of first order.
    """

    def step(self, x_t: Tensor, t: ScheduleStep, s: ScheduleStep, noise: Noise, memory: Any) -> Step:
        """A step of the half log signal-to-noise ratio; the memory is the last x0 and its ratio."""
        prediction = yield Query(x_t, t, s)
        x0, log_ratio = prediction.x0, _log_ratio(t)
        if s.is_data:
            return x0, prediction, None
        h, direction = _log_ratio(s) - log_ratio, x0
        if memory is not None:
            previous, previous_ratio = memory
            direction = lerp(x0, previous, -h / (2 * (log_ratio - previous_ratio)))
        x_s = (s.sigma / t.sigma) * x_t - s.alpha * math.expm1(-h) * direction
        return x_s, prediction, (x0, log_ratio)


def _move(prediction: Prediction, s: ScheduleStep) -> Tensor:
    return s.alpha * prediction.x0 + s.sigma * prediction.epsilon


def _log_ratio(step: ScheduleStep) -> float:
    return math.log(step.alpha / step.sigma) if step.alpha > 0 else -math.inf


SAMPLERS: dict[str, Sampler] = {
    "ddpm": DDPM(), "ddim": DDIM(), "euler": Euler(), "heun": Heun(), "dpm-solver": DPMSolver(),
}  # fmt: skip


def check(sampler: str, schedule: Schedule, steps: int) -> None:
    """Raise UserError for an unknown sampler, or a number of steps that the schedule does not have."""
    if sampler not in SAMPLERS:
        raise UserError(f"unknown sampler {sampler!r}; {nearest(sampler, SAMPLERS)}")
    if steps < 1 or (schedule.steps and steps > schedule.steps):
        most = f" to {schedule.steps}, the steps the model was trained with" if schedule.steps else " or more"
        raise UserError(f"{steps} sampling steps: must be 1{most}")


class Trajectory:
    """One sampling under way: the rows it needs evaluated next, advanced by their prediction.

    ``denoiser([trajectory.rows])`` gives the prediction of one; the rows of many go through one call.

    It starts from standard normal noise x (N, C, *size) and ends where ``rows`` is None; ``noise`` gives more of it for
    ancestral steps. The grid is the sampler's own by default. UserError where ``check`` raises it.
    """

    rows: Rows | None

    def __init__(
        self, sampler: str, schedule: Schedule, steps: int, guidance: Guidance, condition: Condition, x: Tensor, noise: Noise,
        grid: TimeGrid | None = None,
    ):  # fmt: skip
        check(sampler, schedule, steps)
        self.method, self.guidance, self.condition, self.noise = SAMPLERS[sampler], guidance, condition, noise
        times = (grid or self.method.grid).times(schedule, steps)
        self._steps = pairwise([*schedule_steps(schedule, times), DATA])
        self._memory: Any = None
        self._begin(x)

    def _begin(self, x: Tensor) -> None:
        """Start the next step at x, or end."""
        self.x, self.rows = x, None
        step = next(self._steps, None)
        if step is not None:
            self._step = self.method.step(x, *step, self.noise, self._memory)
            self._ends = step
            self._expand(next(self._step))

    def _expand(self, query: Query) -> None:
        self._query, self.rows = query, self.guidance.expand(query, self.condition)

    def answer(self, prediction: Prediction) -> State | None:
        """Advance by the prediction for ``rows``; returns the state if that ends a step."""
        combined = self.guidance.combine(self._query, prediction)
        try:
            self._expand(self._step.send(combined))
        except StopIteration as finished:
            x_t, (t, s) = self.x, self._ends
            x_s, last, self._memory = finished.value
            self._begin(x_s)
            return State(x_t, last.x0, x_s, t, s)
        return None


def sample(trajectory: Trajectory, denoiser: Denoiser) -> Iterator[State]:
    """Denoise to the end, step by step; the last state's ``x_s`` is the sample."""
    while trajectory.rows is not None:
        (prediction,) = denoiser([trajectory.rows])
        state = trajectory.answer(prediction)
        if state is not None:
            yield state
