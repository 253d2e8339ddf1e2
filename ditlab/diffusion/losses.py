"""Training losses: the paper's hybrid loss, and flow matching.

A loss draws the random numbers of a batch on the CPU, then computes one value a sample.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ditlab.diffusion.draws import Positions
from ditlab.diffusion.predictions import TARGETS, corrupt, per_sample
from ditlab.diffusion.schedules import SCHEDULES, LinearBeta, RectifiedFlow, Schedule
from ditlab.diffusion.time_grid import shifted
from ditlab.errors import UserError, nearest
from ditlab.models import Condition

Draws = dict[str, Tensor]


@dataclass(frozen=True)
class DiffusionConfig:
    """The diffusion process; by default the paper's."""

    schedule: Literal["linear-beta", "rectified-flow"] = "linear-beta"
    """DDPM's 1000 linear betas, or straight lines."""
    target: Literal["epsilon", "x0", "v", "velocity"] = "epsilon"
    """What the network predicts: noise, data, v, or rectified flow's velocity."""
    learned_variance: bool = True
    """Learn the variance of the reverse steps with the variational term (linear-beta only)."""
    times: Literal["uniform", "logit-normal"] = "uniform"
    """Distribution of training times."""
    condition_dropout: float = 0.1
    """Share of samples trained without their condition, which guidance needs; 0 trains without a null."""
    direction: bool = False
    """Add one minus the cosine between prediction and target (Yao et al. 2024, FasterDiT)."""
    time_scale: float = 1000.0
    """Network time at t = 1 of a continuous schedule: 1000, or 1 as in SiT and LightningDiT."""
    shift: float = 1.0
    """More noise, in training and sampling, for a value above 1 (rectified-flow only): 3 at 1024 pixels in SD3. Sampling at
    another size multiplies it by the square root of the ratio of token counts."""
    zero_snr: bool = False
    """Rescale the betas so that the last time is pure noise (Lin et al. 2023), as W.A.L.T (linear-beta with target v or x0)."""

    def check(self) -> None:
        """Raise UserError where a value is unknown, or values do not go together."""
        if self.schedule not in SCHEDULES:
            raise UserError(f"unknown schedule {self.schedule!r}; {nearest(self.schedule, SCHEDULES)}")
        if self.target not in TARGETS:
            raise UserError(f"unknown target {self.target!r}; {nearest(self.target, TARGETS)}")
        if self.schedule == "rectified-flow" and self.target == "epsilon":
            raise UserError("target 'epsilon' does not determine the data at t = 1 of rectified flow; use 'velocity'")
        if self.zero_snr and (self.schedule != "linear-beta" or self.target not in ("v", "x0")):
            raise UserError("zero SNR goes with schedule 'linear-beta' and target 'v' or 'x0'")
        if self.learned_variance and (self.schedule != "linear-beta" or self.target != "epsilon"):
            raise UserError("learned variance goes with schedule 'linear-beta' and target 'epsilon' only")
        if self.times == "logit-normal" and self.schedule != "rectified-flow":
            raise UserError("logit-normal times go with schedule 'rectified-flow' only")
        if not 0 < self.shift < 1000 or (self.shift != 1 and self.schedule != "rectified-flow"):
            raise UserError(f"shift {self.shift} must be above 0, and 1 but for schedule 'rectified-flow'")
        if self.direction and self.learned_variance:
            raise UserError("the direction term goes with flow matching; set --diffusion.learned-variance False")
        if not 0 <= self.condition_dropout < 1:
            raise UserError(f"condition dropout {self.condition_dropout} is not a share from 0 to below 1")
        if not 0 < self.time_scale <= 1e6:
            raise UserError(f"time scale {self.time_scale} must be above 0: 1000, or 1 as in SiT")

    def build_schedule(self) -> Schedule:
        """The schedule."""
        if self.schedule == "rectified-flow":
            return RectifiedFlow(self.time_scale)
        return LinearBeta(zero_snr=self.zero_snr)

    def build_loss(self) -> Loss:
        """The loss, with its schedule inside.

        Raises:
            UserError: values do not go together.
        """
        self.check()
        return LOSSES["hybrid" if self.learned_variance else "flow-matching"].build(self, self.build_schedule())


class Loss(nn.Module, ABC):
    """Called as ``loss(network, x0, condition, draws)``; gives one loss a sample, (N,)."""

    def __init__(self, schedule: Schedule, condition_dropout: float):
        super().__init__()
        self.schedule, self.condition_dropout = schedule, condition_dropout

    @classmethod
    @abstractmethod
    def build(cls, config: DiffusionConfig, schedule: Schedule) -> Loss:
        """The loss of a configuration."""

    @abstractmethod
    def draw_times(self, positions: Positions) -> Tensor:
        """Times (count,) in [0, 1]."""

    def draw(self, positions: Positions, shape: tuple[int, ...]) -> Draws:
        """The random numbers of samples of ``shape`` (C, *size), on the CPU."""
        return {
            "t": self.draw_times(positions),
            "drop": positions.uniform("drop") < self.condition_dropout,
            "epsilon": positions.normal("epsilon", shape),
        }

    @abstractmethod
    def forward(self, network: nn.Module, x0: Tensor, condition: Condition, draws: Draws) -> Tensor:
        """Loss of each sample of x0 (N, C, *size), float32 (N,)."""


class FlowMatching(Loss):
    """Mean squared error of the target at times uniform or logit-normal (Lipman et al. 2022; Esser et al. 2024).

    With ``direction``, one minus the cosine between the whole sample's prediction and target is added. Public code takes the
    cosine over the channels of each position, which for one channel is only a sign.
    """

    def __init__(
        self, schedule: Schedule, target: str, times: str, direction: bool, condition_dropout: float, shift: float = 1.0
    ):  # fmt: skip
        super().__init__(schedule, condition_dropout)
        self.target, self.times, self.direction, self.shift = target, times, direction, shift

    @classmethod
    def build(cls, config: DiffusionConfig, schedule: Schedule) -> FlowMatching:  # noqa: D102
        return cls(schedule, config.target, config.times, config.direction, config.condition_dropout, config.shift)

    def draw_times(self, positions: Positions) -> Tensor:
        """Continuous times, or the rows of a table."""
        if self.schedule.steps:
            return _rows(positions, self.schedule.steps)
        t = torch.sigmoid(positions.normal("t")) if self.times == "logit-normal" else positions.uniform("t")
        return t if self.shift == 1 else shifted(t, self.shift)

    def forward(self, network: nn.Module, x0: Tensor, condition: Condition, draws: Draws) -> Tensor:
        """Squared error, averaged over each sample, and its direction."""
        noised = corrupt(self.schedule, x0, draws["epsilon"], draws["t"])
        output = network(noised.x_t, self.schedule.network_time(draws["t"]), condition.drop(draws["drop"]))
        output, target = output.float().flatten(1), noised.target(self.target).flatten(1)
        squared = (output - target).square().mean(dim=1)
        return squared + 1 - F.cosine_similarity(output, target, dim=1) if self.direction else squared


class Hybrid(Loss):
    """The paper's loss: squared error of epsilon + a term of the variational bound (Nichol and Dhariwal 2021, eq. 16).

    The second term, in bits, trains only the variance: the mean in it is detached. At t = 0 it is the negative log
    likelihood of the data under a Gaussian discretised to 256 levels in [-1, 1].
    """

    log_beta: Tensor
    log_posterior: Tensor
    from_x0: Tensor
    ratio: Tensor

    def __init__(self, schedule: LinearBeta, condition_dropout: float):
        super().__init__(schedule, condition_dropout)
        alpha_bar = schedule.alpha_bar
        before = torch.cat([alpha_bar.new_ones(1), alpha_bar[:-1]])
        beta = 1 - alpha_bar / before
        posterior = beta * (1 - before) / (1 - alpha_bar)
        posterior[0] = posterior[1]  # the true one is 0, whose log is not finite
        tables = {
            "log_beta": beta.log(),
            "log_posterior": posterior.log(),
            "from_x0": before.sqrt() * beta / (1 - alpha_bar),  # the posterior mean's weight on x0
            "ratio": ((1 - alpha_bar) / alpha_bar).sqrt(),  # sigma / alpha: an error of epsilon, as an error of x0
        }
        for name, table in tables.items():
            self.register_buffer(name, table, persistent=False)

    @classmethod
    def build(cls, config: DiffusionConfig, schedule: Schedule) -> Hybrid:  # noqa: D102
        assert isinstance(schedule, LinearBeta)
        return cls(schedule, config.condition_dropout)

    def draw_times(self, positions: Positions) -> Tensor:
        """Rows of the table, uniformly."""
        return _rows(positions, self.schedule.steps)

    def forward(self, network: nn.Module, x0: Tensor, condition: Condition, draws: Draws) -> Tensor:
        """Squared error and variational term, each averaged over the sample, added."""
        t, epsilon = draws["t"], draws["epsilon"]
        noised = corrupt(self.schedule, x0, epsilon, t)
        output = network(noised.x_t, self.schedule.network_time(t), condition.drop(draws["drop"])).float()
        predicted, variance = output.chunk(2, dim=1)
        squared = (predicted - epsilon).square().flatten(1).mean(dim=1)
        return squared + self.variational(x0, predicted.detach() - epsilon, variance, t)

    def variational(self, x0: Tensor, error: Tensor, variance: Tensor, t: Tensor) -> Tensor:
        """The bound's term of row t in bits, averaged over each sample, (N,).

        Args:
            x0: data (N, C, H, W).
            error: predicted minus true epsilon (N, C, H, W).
            variance: the network's interpolation (N, C, H, W), -1 the posterior's log variance, 1 beta's.
            t: times (N,).
        """
        assert isinstance(self.schedule, LinearBeta)
        index = self.schedule.index(t)
        log_true, log_beta = (per_sample(table[index], x0) for table in (self.log_posterior, self.log_beta))
        log_variance = log_true + (variance + 1) / 2 * (log_beta - log_true)
        # The means differ by the weight on x0 times the error of x0: minus sigma / alpha times the error of epsilon.
        shift = per_sample((self.from_x0 * self.ratio)[index], x0) * error
        gap = log_true - log_variance
        divergence = 0.5 * (gap.exp() - 1 - gap + shift.square() * torch.exp(-log_variance))
        likelihood = discretised_gaussian_nll(x0, x0 - shift, 0.5 * log_variance)
        nats = torch.where(per_sample(index, x0) == 0, likelihood, divergence)
        return nats.flatten(1).mean(dim=1) / math.log(2)


def discretised_gaussian_nll(x: Tensor, mean: Tensor, log_std: Tensor) -> Tensor:
    """Negative log likelihood, nats, of x in [-1, 1] on 256 levels under a Gaussian; the outer levels own the tails."""
    centred, scale = x - mean, torch.exp(-log_std)

    def below(distance: Tensor) -> Tensor:
        return torch.special.ndtr(distance * scale)

    # Inner levels are measured on the left tail, where a difference of two small numbers is exact.
    inner = below(1 / 255 - centred.abs()) - below(-1 / 255 - centred.abs())
    mass = torch.where(x < -0.999, below(centred + 1 / 255), torch.where(x > 0.999, below(1 / 255 - centred), inner))
    return -mass.clamp(min=1e-12).log()


def _rows(positions: Positions, steps: int) -> Tensor:
    return positions.integers("t", steps).double() / (steps - 1)


LOSSES: dict[str, type[Loss]] = {"hybrid": Hybrid, "flow-matching": FlowMatching}
