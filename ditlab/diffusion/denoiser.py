"""A network with the schedule and the target it was trained for: predictions of data and noise from a noised sample."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ditlab.diffusion.predictions import per_sample, to_x0_epsilon
from ditlab.diffusion.schedules import Schedule
from ditlab.models import Condition, Network


@dataclass(frozen=True)
class ScheduleStep:
    """A time and the schedule's values there.

    Where a batch shares the time they are plain numbers, so that a step's coefficients cost no tensor and no
    synchronisation. With a time a frame alpha and sigma are (N, 1, F, 1, 1) and the network time (N, F).

    Attributes:
        t: 1 is noise, 0 data; with a time a frame the largest of them.
        alpha: weight of the data.
        sigma: weight of the noise.
        network_time: input of the network.
        is_data: the end of a sampling, data without noise.
    """

    t: float
    alpha: float | Tensor
    sigma: float | Tensor
    network_time: float | Tensor
    is_data: bool = False


DATA = ScheduleStep(t=0.0, alpha=1.0, sigma=0.0, network_time=0.0, is_data=True)


def schedule_steps(schedule: Schedule, times: Sequence[float]) -> list[ScheduleStep]:
    """The schedule at ``times``, each shared by a batch."""
    device = next((buffer.device for buffer in schedule.buffers()), torch.device("cpu"))
    t = torch.tensor(times, dtype=torch.float64, device=device)
    alpha, sigma = (values.tolist() for values in schedule(t))
    network_time = schedule.network_time(t).tolist()
    return [ScheduleStep(*row) for row in zip(times, alpha, sigma, network_time, strict=True)]


def frame_step(schedule: Schedule, t: float, known: Tensor, like: Tensor) -> ScheduleStep:
    """The schedule at time t for a batch ``like`` (N, C, F, H, W) whose frames ``known``, bool (N, F), have time 0.

    Data without noise is alpha 1 and sigma 0, whatever the first row of a table has.
    """
    (step,) = schedule_steps(schedule, [t])
    zero = torch.zeros(known.shape, dtype=torch.float64, device=known.device)
    alpha, sigma, network_time = (
        torch.where(known, zero + clean, zero + value)
        for clean, value in ((1.0, step.alpha), (0.0, step.sigma), (0.0, step.network_time))
    )
    return ScheduleStep(t, per_sample(alpha, like), per_sample(sigma, like), network_time.float())


@dataclass(frozen=True)
class Rows:
    """Inputs of one network call that share a step: x (M, C, *size) at t under a condition of M samples.

    ``s`` is the end of the step, which networks of average velocity take.
    """

    x: Tensor
    t: ScheduleStep
    s: ScheduleStep
    condition: Condition

    def halves(self) -> list[Rows]:
        """The rows in two parts, for a batch that does not fit in memory."""
        half = len(self.x) // 2
        parts = (slice(None, half), slice(half, None))
        return [Rows(self.x[part], self.t, self.s, self.condition.select(part)) for part in parts]


@dataclass(frozen=True)
class Prediction:
    """A denoiser's prediction for x (N, C, *size).

    Attributes:
        x0: the data (N, C, *size).
        epsilon: the noise (N, C, *size).
        variance: where learned, the position of a step's log variance between the posterior's (0) and beta's (1).
    """

    x0: Tensor
    epsilon: Tensor
    variance: Tensor | None = None

    def cat(self, other: Prediction) -> Prediction:
        """This batch followed by another."""
        variance = None
        if self.variance is not None and other.variance is not None:
            variance = torch.cat([self.variance, other.variance])
        return Prediction(torch.cat([self.x0, other.x0]), torch.cat([self.epsilon, other.epsilon]), variance)


class Denoiser(torch.nn.Module):
    """Wraps a network; called with the rows of one or several samplings, it runs the network once for all of them."""

    def __init__(self, network: Network, schedule: Schedule, target: str, learned_variance: bool):
        super().__init__()
        self.network, self.schedule = network, schedule
        self.target, self.learned_variance, self.bf16 = target, learned_variance, False

    def cast(self, bf16: bool) -> Denoiser:
        """The same denoiser with its network's matrix products in bfloat16, or in float32."""
        other = copy.copy(self)
        other.bf16 = bf16
        return other

    def prepared(self, bf16: bool) -> Denoiser:
        """As ``cast``, for many steps with the weights of now: those of matrix products are cast once, not in every step.

        Casting in bfloat16 takes a copy of the network.
        """
        if not bf16:
            return self.cast(False)
        network = copy.deepcopy(self.network)
        for module in network.modules():
            if isinstance(module, torch.nn.Linear | torch.nn.Conv2d):
                module.to(torch.bfloat16)
        return Denoiser(network, self.schedule, self.target, self.learned_variance).cast(True)

    def forward(self, batches: Sequence[Rows]) -> list[Prediction]:
        """Predict for every row of ``batches``, whose samples have one size; one prediction a batch of rows."""
        x = _cat([rows.x for rows in batches])
        condition = batches[0].condition
        for rows in batches[1:]:
            condition = condition.cat(rows.condition)
        t = _cat([_network_times(rows.t, rows.x) for rows in batches])
        r = _cat([_network_times(rows.s, rows.x) for rows in batches]) if self.network.spec.interval else None
        with torch.autocast(x.device.type, torch.bfloat16, enabled=self.bf16):
            output = self.network(x, t, condition, r)
        output = output.to(x.dtype, copy=True)  # a compiled network overwrites its own output in its next call
        outputs = output.split([len(rows.x) for rows in batches])
        return [self._convert(rows, each) for rows, each in zip(batches, outputs, strict=True)]

    def predict(self, x: Tensor, t: ScheduleStep, condition: Condition) -> Prediction:
        """Predict for x (N, C, *size) at one step."""
        return self([Rows(x, t, DATA, condition)])[0]

    def _convert(self, rows: Rows, output: Tensor) -> Prediction:
        variance = None
        if self.learned_variance:
            output, variance = output.chunk(2, dim=1)
            variance = (variance + 1) / 2
        return Prediction(*to_x0_epsilon(self.target, output, rows.x, rows.t.alpha, rows.t.sigma), variance)


def _network_times(step: ScheduleStep, x: Tensor) -> Tensor:
    if isinstance(step.network_time, Tensor):
        return step.network_time
    return torch.full((len(x),), step.network_time, device=x.device)


def _cat(tensors: Sequence[Tensor]) -> Tensor:
    return tensors[0] if len(tensors) == 1 else torch.cat(list(tensors))
