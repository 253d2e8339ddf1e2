"""Grids of steps, single steps, and whole runs on data whose exact denoiser is known.

The data are Gaussian, N(MEAN, STD^2) in every pixel. Then x_t is Gaussian too, the exact prediction is linear in it, and the
probability flow carries noise z to MEAN + STD z.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from specs import FixedNetwork
from torch import Tensor

from ditlab.diffusion import (
    SAMPLERS,
    Denoiser,
    Guidance,
    LinearBeta,
    Prediction,
    RectifiedFlow,
    Schedule,
    ScheduleStep,
    State,
    TimeGrid,
    Trajectory,
    sample,
    schedule_steps,
)
from ditlab.diffusion.denoiser import DATA
from ditlab.diffusion.samplers import check
from ditlab.errors import UserError
from ditlab.models import Condition

MEAN, STD = 0.7, 0.6
TABLE = torch.from_numpy(np.cumprod(1 - np.linspace(1e-4, 2e-2, 1000)))
DETERMINISTIC = ("ddim", "euler", "heun", "dpm-solver")


class Perfect(FixedNetwork):
    """The exact network for N(mean, std^2): epsilon on the table, the velocity on straight lines."""

    def __init__(self, straight: bool, mean: float = MEAN, std: float = STD, variance: float | None = None):
        super().__init__()
        self.straight, self.mean, self.std, self.variance = straight, mean, std, variance

    def forward(self, x: Tensor, t: Tensor, condition: Condition, r: Tensor | None = None) -> Tensor:
        t = t.double().view(-1, 1, 1, 1)
        alpha, sigma = (
            (1 - t / 1000, t / 1000) if self.straight else (TABLE[t.long()] ** 0.5, (1 - TABLE[t.long()]) ** 0.5)
        )
        whitened = (x - alpha * self.mean) / (alpha**2 * self.std**2 + sigma**2)
        epsilon = sigma * whitened
        if self.straight:
            return epsilon - (self.mean + alpha * self.std**2 * whitened)
        if self.variance is not None:
            return torch.cat([epsilon, torch.full_like(x, self.variance)], dim=1)
        return epsilon


def denoiser(straight: bool, **kwargs: float) -> Denoiser:
    schedule = RectifiedFlow() if straight else LinearBeta()
    return Denoiser(
        Perfect(straight, **kwargs), schedule, "velocity" if straight else "epsilon", kwargs.get("variance") is not None
    )


def run(denoise: Denoiser, sampler: str, steps: int, x: Tensor, seed: int = 0) -> list[State]:
    generator = torch.Generator().manual_seed(seed)

    def noise() -> Tensor:
        return torch.randn(x.shape, generator=generator, dtype=x.dtype)

    condition = Condition.of_labels(torch.zeros(len(x), dtype=torch.int64))
    return list(sample(Trajectory(sampler, denoise.schedule, steps, Guidance(), condition, x, noise), denoise))


def rows(sampler: str, steps: int) -> list[int]:
    schedule = LinearBeta()
    times = SAMPLERS[sampler].grid.times(schedule, steps)
    return [round(schedule.network_time(torch.tensor(t, dtype=torch.float64)).item()) for t in times]


def test_ddpm_respaces_with_both_ends() -> None:
    assert rows("ddpm", 10) == [999, 888, 777, 666, 555, 444, 333, 222, 111, 0]
    for steps in (2, 47, 250, 999):  # 47 has a tie, which counting from 0 upwards decides
        assert rows("ddpm", steps) == np.linspace(0, 999, steps).round().astype(int).tolist()[::-1]
    assert rows("ddpm", 1) == [999]


def test_ddim_strides_from_row_0() -> None:
    assert rows("ddim", 10) == [900, 800, 700, 600, 500, 400, 300, 200, 100, 0]
    assert rows("ddim", 250) == list(range(996, -1, -4))
    assert rows("ddim", 300)[:4] == [
        996,
        993,
        990,
        986,
    ]  # no whole stride takes 300: evenly, and from near the noisiest
    assert rows("ddim", 501)[0] == 998


@pytest.mark.parametrize("sampler", ["euler", "heun", "dpm-solver"])
def test_the_other_samplers_start_at_the_noisiest_row(sampler: str) -> None:
    assert rows(sampler, 9) == [999, 888, 777, 666, 555, 444, 333, 222, 111]
    for steps in (1, 46, 250, 999):
        assert rows(sampler, steps) == np.linspace(0, 999, steps + 1).round().astype(int).tolist()[:0:-1]


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_a_thousand_steps_keep_every_row(sampler: str) -> None:
    assert rows(sampler, 1000) == list(range(999, -1, -1))


@pytest.mark.parametrize("sampler", SAMPLERS)
@settings(max_examples=100, deadline=None)
@given(steps=st.integers(1, 1000))
def test_no_row_is_visited_twice(sampler: str, steps: int) -> None:
    found = rows(sampler, steps)
    assert len(found) == steps
    assert all(ahead < here for here, ahead in pairwise(found))
    assert 0 <= found[-1] <= found[0] <= 999


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_continuous_times_are_even(sampler: str) -> None:
    assert SAMPLERS[sampler].grid.times(RectifiedFlow(), 4) == [1.0, 0.75, 0.5, 0.25]


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("straight", [True, False], ids=["rectified-flow", "linear-beta"])
def test_a_run_yields_each_step_and_ends_clean(sampler: str, straight: bool) -> None:
    denoise = denoiser(straight)
    states = run(denoise, sampler, 7, torch.randn(3, 2, 2, 2, dtype=torch.float64))
    assert len(states) == 7
    times = SAMPLERS[sampler].grid.times(denoise.schedule, 7)
    assert [state.s.t for state in states] == [*times[1:], 0.0]
    assert states[-1].s == DATA
    assert torch.equal(states[-1].x_s, states[-1].x0)
    assert all(state.x_s.shape == state.x0.shape == (3, 2, 2, 2) for state in states)


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("straight", [True, False], ids=["rectified-flow", "linear-beta"])
def test_samples_have_the_datas_mean_and_spread(sampler: str, straight: bool) -> None:
    x = torch.randn(20_000, 1, 1, 1, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    found = run(denoiser(straight), sampler, 250, x)[-1].x_s
    assert found.mean().item() == pytest.approx(MEAN, abs=0.015)  # three standard errors: 0.013
    assert found.std().item() == pytest.approx(STD, abs=0.02)


def test_ddpms_variance_is_exact_at_both_of_its_ends() -> None:
    """Beta is the true variance for standard normal data, the posterior's for a single image; few steps show it."""
    x = torch.randn(20_000, 1, 1, 1, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    normal = {
        v: run(denoiser(False, mean=0.0, std=1.0, variance=v), "ddpm", 10, x)[-2].x_s.std().item() for v in (-1, 1)
    }
    assert normal[1] == pytest.approx(1, abs=0.015)
    assert normal[-1] < 0.9
    states = run(denoiser(False, mean=0.5, std=0.0, variance=-1), "ddpm", 10, x)
    assert (states[-1].x_s - 0.5).abs().max() < 1e-9
    alpha, sigma = states[4].s.alpha, states[4].s.sigma
    assert states[4].x_s.mean().item() == pytest.approx(alpha * 0.5, abs=0.02)
    assert states[4].x_s.std().item() == pytest.approx(sigma, rel=0.015)
    loose = run(denoiser(False, mean=0.5, std=0.0, variance=1), "ddpm", 10, x)
    assert loose[4].x_s.std().item() > 1.02 * sigma
    fixed = run(denoiser(False, mean=0.5, std=0.0), "ddpm", 10, x)  # nothing learned: the posterior's
    torch.testing.assert_close(fixed[4].x_s, states[4].x_s, atol=1e-9, rtol=0)


def zeros(count: int) -> Condition:
    return Condition.of_labels(torch.zeros(count, dtype=torch.int64))


def step(
    sampler: str,
    predict: Callable[[Tensor, ScheduleStep], Prediction],
    x: Tensor,
    t: ScheduleStep,
    s: ScheduleStep,
    memory: Any = None,
) -> tuple[Tensor, Any]:
    """One step of a sampler without noise; gives x_s and its memory."""
    steps = SAMPLERS[sampler].step(x, t, s, lambda: torch.zeros(1), memory)
    try:
        query = next(steps)
        while True:
            query = steps.send(predict(query.x_t, query.t))
    except StopIteration as finished:
        return finished.value[0], finished.value[2]


def interior_errors(sampler: str, straight: bool, counts: tuple[int, ...]) -> np.ndarray:
    """Errors after going from one inner time to another in so many even steps, beside the exact flow."""
    denoise, errors = denoiser(straight), []
    z = torch.linspace(-2, 2, 9, dtype=torch.float64).view(9, 1, 1, 1)
    for count in counts:
        # rows 899 to 99 of the table: every stride is a whole number of rows
        path = schedule_steps(denoise.schedule, [(899 - 800 * k / count) / 999 for k in range(count + 1)])
        exact = [point.alpha * MEAN + (point.alpha**2 * STD**2 + point.sigma**2) ** 0.5 * z for point in path]
        x, memory = exact[0], None
        for t, s in pairwise(path):
            x, memory = step(sampler, lambda x, at: denoise.predict(x, at, zeros(9)), x, t, s, memory)
        errors.append((x - exact[-1]).abs().max().item())
    return np.array(errors)


@pytest.mark.parametrize("straight", [True, False], ids=["rectified-flow", "linear-beta"])
def test_heun_and_dpm_solver_are_of_second_order_and_euler_of_first(straight: bool) -> None:
    counts = (50, 100, 200, 400)
    errors = {name: interior_errors(name, straight, counts) for name in DETERMINISTIC}
    orders = {name: np.log2(found[:-1] / found[1:]) for name, found in errors.items()}
    for name in ("ddim", "euler"):
        assert np.abs(orders[name] - 1).max() < 0.1, orders
    for name in ("heun", "dpm-solver"):
        assert np.abs(orders[name][-2:] - 2).max() < 0.25, orders


@pytest.mark.parametrize("straight", [True, False], ids=["rectified-flow", "linear-beta"])
def test_whole_runs_reach_the_exact_flow_the_sooner_the_higher_the_order(straight: bool) -> None:
    z = torch.linspace(-2, 2, 9, dtype=torch.float64).view(9, 1, 1, 1)
    alpha, sigma = (0.0, 1.0) if straight else (TABLE[-1].item() ** 0.5, (1 - TABLE[-1].item()) ** 0.5)
    start = alpha * MEAN + (alpha**2 * STD**2 + sigma**2) ** 0.5 * z
    error = {
        (name, steps): (run(denoiser(straight), name, steps, start)[-1].x_s - MEAN - STD * z).abs().max().item()
        for name in DETERMINISTIC
        for steps in (37, 111)
    }
    for name in ("ddim", "euler"):
        assert error[name, 111] < 0.5 * error[name, 37] < 0.05
    for name in ("heun", "dpm-solver"):
        assert error[name, 111] < 0.15 * error["euler", 111]
        assert error[name, 37] < 0.25 * error["euler", 37]


def test_one_step_of_euler_is_one_of_ddim_and_moves_along_the_flow() -> None:
    generator = torch.Generator().manual_seed(0)
    x, bend = (torch.randn(2, 3, 4, 4, generator=generator, dtype=torch.float64) for _ in range(2))
    t, s = ScheduleStep(0.8, 0.3, 0.9, 800), ScheduleStep(0.5, 0.7, 0.6, 500)

    def predict(x: Tensor, at: ScheduleStep) -> Prediction:
        epsilon = torch.tanh(x + bend)
        return Prediction((x - at.sigma * epsilon) / at.alpha, epsilon)

    def moved(name: str) -> Tensor:
        return step(name, predict, x, t, s)[0]

    first = predict(x, t)
    direction = (s.alpha - t.alpha) * first.x0 + (s.sigma - t.sigma) * first.epsilon
    assert torch.equal(moved("euler"), moved("ddim"))
    torch.testing.assert_close(moved("euler"), x + direction, atol=1e-12, rtol=0)
    second = predict(x + direction, s)
    again = (s.alpha - t.alpha) * second.x0 + (s.sigma - t.sigma) * second.epsilon
    torch.testing.assert_close(moved("heun"), x + (direction + again) / 2, atol=1e-12, rtol=0)


def test_a_shifted_grid_spends_more_steps_on_noise() -> None:
    """Esser et al. 2024, equation 23: t <- shift t / (1 + (shift - 1) t)."""
    assert TimeGrid(shift=3.0).times(RectifiedFlow(), 4) == pytest.approx([1.0, 0.9, 0.75, 0.5])


@pytest.mark.parametrize(
    ("sampler", "calls"), [("ddpm", 6), ("ddim", 6), ("euler", 6), ("heun", 11), ("dpm-solver", 6)]
)
def test_the_network_is_evaluated_once_a_step_and_by_heun_twice_except_in_the_last(sampler: str, calls: int) -> None:
    denoise = denoiser(True)
    seen: list[float] = []
    denoise.network.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[1][0].item()))
    run(denoise, sampler, 6, torch.randn(2, 1, 2, 2, dtype=torch.float64))
    assert len(seen) == calls
    assert min(seen) > 0  # never at clean data


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_only_ddpm_asks_for_noise(sampler: str) -> None:
    asked = []

    def noise() -> Tensor:
        asked.append(1)
        return torch.zeros(2, 1, 2, 2, dtype=torch.float64)

    denoise = denoiser(False)
    x, condition = torch.randn(2, 1, 2, 2, dtype=torch.float64), Condition.of_labels(torch.zeros(2, dtype=torch.int64))
    list(sample(Trajectory(sampler, denoise.schedule, 6, Guidance(), condition, x, noise), denoise))
    assert len(asked) == (5 if sampler == "ddpm" else 0)  # none in the last step


@pytest.mark.parametrize(
    ("sampler", "schedule", "steps", "words"),
    [
        ("dpm-solve", RectifiedFlow(), 10, ["'dpm-solve'", "did you mean 'dpm-solver'"]),
        ("", RectifiedFlow(), 10, ["''", "ddpm, ddim, euler, heun, dpm-solver"]),
        ("ddim", RectifiedFlow(), 0, ["0 sampling steps", "1 or more"]),
        ("ddim", LinearBeta(), -3, ["-3 sampling steps", "1 to 1000"]),
        ("ddpm", LinearBeta(), 1001, ["1001 sampling steps", "1 to 1000"]),
    ],
)
def test_unknown_samplers_and_impossible_steps_are_refused_in_one_line(
    sampler: str, schedule: Schedule, steps: int, words: list[str]
) -> None:
    with pytest.raises(UserError) as caught:
        check(sampler, schedule, steps)
    assert "\n" not in str(caught.value)
    for word in words:
        assert word in str(caught.value)
    x = torch.randn(1, 1, 2, 2)
    with pytest.raises(UserError):
        Trajectory(sampler, schedule, steps, Guidance(), zeros(1), x, lambda: x)


class PerfectV(Perfect):
    """The exact v for N(mean, std^2) on the table that ends in pure noise."""

    schedule = LinearBeta(zero_snr=True)

    def forward(self, x: Tensor, t: Tensor, condition: Condition, r: Tensor | None = None) -> Tensor:
        alpha, sigma = (value.view(-1, 1, 1, 1) for value in self.schedule(t / 999))
        whitened = (x - alpha * self.mean) / (alpha**2 * self.std**2 + sigma**2)
        x0 = self.mean + alpha * self.std**2 * whitened
        return (alpha * sigma * whitened - sigma * x0).to(x.dtype)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_sampling_from_pure_noise_starts_at_the_last_row_and_has_the_datas_brightness(sampler: str) -> None:
    schedule = PerfectV.schedule
    x = torch.randn(512, 1, 4, 4, generator=torch.Generator().manual_seed(5))
    for std in (STD, 0.0):
        states = run(Denoiser(PerfectV(False, std=std), schedule, "v", learned_variance=False), sampler, 150, x)
        assert states[0].t.t == 1
        assert states[0].t.alpha == 0
        made = states[-1].x_s
        assert made.isfinite().all()
        assert made.mean() == pytest.approx(MEAN, abs=0.02)
        assert made.std() == pytest.approx(std, abs=0.04)
