"""The two schedules, and what corruption and its inverse make of them."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ditlab.diffusion import TARGETS, LinearBeta, RectifiedFlow, Schedule, corrupt, schedule_steps, to_x0_epsilon

SCHEDULES: list[Schedule] = [LinearBeta(), RectifiedFlow()]


def test_the_table_is_the_product_of_one_minus_beta() -> None:
    schedule = LinearBeta()
    alpha, sigma = schedule(torch.linspace(0, 1, 1000, dtype=torch.float64))
    assert alpha.dtype == sigma.dtype == torch.float64
    product = 1.0
    for k in range(1000):
        product *= 1 - (1e-4 + (2e-2 - 1e-4) * k / 999)
        assert alpha[k].item() ** 2 == pytest.approx(product, rel=1e-12)
        assert sigma[k].item() ** 2 == pytest.approx(1 - product, rel=1e-11)
    assert schedule.steps == 1000
    assert product == pytest.approx(4.0358e-5, rel=1e-3)  # the known end of DDPM's table


def test_zero_snr_ends_in_pure_noise_and_is_that_of_diffusers() -> None:
    from diffusers.schedulers.scheduling_ddim import rescale_zero_terminal_snr

    plain, schedule = LinearBeta(), LinearBeta(zero_snr=True)
    assert schedule.alpha_bar[-1] == 0
    assert schedule.alpha_bar[0] == pytest.approx(plain.alpha_bar[0].item(), rel=1e-15)
    betas = rescale_zero_terminal_snr(torch.linspace(1e-4, 2e-2, 1000, dtype=torch.float64))
    torch.testing.assert_close(schedule.alpha_bar, torch.cumprod(1 - betas, dim=0), atol=1e-15, rtol=0)
    x0, epsilon = torch.randn(2, 3, 4, 4), torch.randn(2, 3, 4, 4)
    noised = corrupt(schedule, x0, epsilon, torch.ones(2))
    assert torch.equal(noised.x_t, epsilon)
    torch.testing.assert_close(noised.target("v"), -x0)


def test_each_row_has_its_time_and_is_the_network_time() -> None:
    schedule = LinearBeta()
    for dtype in (torch.float32, torch.float64):
        t = torch.arange(1000, dtype=dtype) / 999
        assert schedule.index(t).tolist() == list(range(1000))
        assert schedule.network_time(t).tolist() == list(range(1000))
    assert schedule.index(torch.tensor([0.6, 0.4]) / 999).tolist() == [1, 0]  # the nearest row


def test_rectified_flow_is_straight_and_its_network_time_scaled() -> None:
    schedule = RectifiedFlow()
    t = torch.tensor([0.0, 0.25, 1.0])
    alpha, sigma = schedule(t)
    assert alpha.tolist() == [1.0, 0.75, 0.0]
    assert sigma.tolist() == [0.0, 0.25, 1.0]
    assert schedule.network_time(t).tolist() == [0.0, 250.0, 1000.0]
    assert RectifiedFlow(time_scale=1.0).network_time(t).tolist() == [0.0, 0.25, 1.0]  # SiT's
    assert schedule.steps == 0


@pytest.mark.parametrize("schedule", SCHEDULES, ids=["linear-beta", "rectified-flow"])
def test_noise_is_at_1_and_data_at_0(schedule: Schedule) -> None:
    alpha, sigma = schedule(torch.linspace(0, 1, 200))
    assert (alpha.diff() < 0).all()
    assert (sigma.diff() > 0).all()
    assert alpha[0] > 0.9999
    assert alpha[-1] < 0.01
    assert sigma[0] <= 0.0101
    assert sigma[-1] > 0.9999


@pytest.mark.parametrize("schedule", SCHEDULES, ids=["linear-beta", "rectified-flow"])
def test_schedule_steps_are_the_schedule_in_plain_numbers(schedule: Schedule) -> None:
    times = [1.0, 0.5, 0.1]
    alpha, sigma = schedule(torch.tensor(times, dtype=torch.float64))
    for k, point in enumerate(schedule_steps(schedule, times)):
        assert (point.t, point.alpha, point.sigma) == (times[k], alpha[k].item(), sigma[k].item())
        assert point.network_time == schedule.network_time(torch.tensor([times[k]], dtype=torch.float64)).item()


def batch(seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    shape = (2, 3, 2, 2)
    return torch.randn(shape, generator=generator).double(), torch.randn(shape, generator=generator).double()


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from(SCHEDULES),
    st.sampled_from(TARGETS),
    st.floats(0.01, 0.99),
    st.floats(0.01, 0.99),
    st.integers(0, 9),
)
def test_every_target_gives_back_data_and_noise(
    schedule: Schedule, target: str, t: float, other: float, seed: int
) -> None:
    x0, epsilon = batch(seed)
    noised = corrupt(schedule, x0, epsilon, torch.tensor([t, other]))
    for k, point in enumerate(schedule_steps(schedule, [t, other])):
        mix = point.alpha * x0[k] + point.sigma * epsilon[k]
        # t is float32 in training and float64 in sampling: on the straight path that moves x by a rounding error
        torch.testing.assert_close(noised.x_t[k], mix, atol=1e-6, rtol=0)
        alpha, sigma = noised.alpha[k].item(), noised.sigma[k].item()
        found = to_x0_epsilon(target, noised.target(target)[k], noised.x_t[k], alpha, sigma)
        torch.testing.assert_close(found[0], x0[k], atol=1e-9, rtol=1e-9)
        torch.testing.assert_close(found[1], epsilon[k], atol=1e-9, rtol=1e-9)


def test_targets_are_what_their_names_say() -> None:
    x0, epsilon = batch(0)
    t = torch.tensor([0.3, 0.8], dtype=torch.float64)
    noised = corrupt(LinearBeta(), x0, epsilon, t)
    assert torch.equal(noised.target("epsilon"), epsilon)
    assert torch.equal(noised.target("x0"), x0)
    # With alpha = cos(phi) and sigma = sin(phi), v is the derivative of x by phi.
    phi, h = torch.atan2(noised.sigma, noised.alpha), 1e-6
    ahead, behind = ((phi + d).cos() * x0 + (phi + d).sin() * epsilon for d in (h, -h))
    torch.testing.assert_close(noised.target("v"), (ahead - behind) / (2 * h), atol=1e-8, rtol=0)


@settings(max_examples=30, deadline=None)
@given(st.floats(0.01, 0.99), st.integers(0, 9))
def test_velocity_is_the_derivative_of_rectified_flows_path(t: float, seed: int) -> None:
    x0, epsilon = batch(seed)
    h, schedule = 1e-5, RectifiedFlow()
    ahead, behind = (corrupt(schedule, x0, epsilon, torch.full((2,), t + d, dtype=torch.float64)) for d in (h, -h))
    here = corrupt(schedule, x0, epsilon, torch.full((2,), t, dtype=torch.float64))
    derivative = (ahead.x_t - behind.x_t) / (2 * h)
    torch.testing.assert_close(here.target("velocity"), derivative, atol=1e-8, rtol=0)


def test_corruption_keeps_the_datas_precision() -> None:
    x0, epsilon = (values.float() for values in batch(0))
    noised = corrupt(LinearBeta(), x0, epsilon, torch.tensor([0.3, 0.8]))
    assert {noised.x_t.dtype, *(noised.target(name).dtype for name in TARGETS)} == {torch.float32}
    assert noised.alpha.shape == noised.sigma.shape == (2, 1, 1, 1)


def test_unknown_targets_are_errors() -> None:
    x0, epsilon = batch(0)
    with pytest.raises(KeyError):
        corrupt(RectifiedFlow(), x0, epsilon, torch.tensor([0.3, 0.8])).target("score")
    with pytest.raises(ValueError, match="unknown target 'score'"):
        to_x0_epsilon("score", x0, x0, 0.5, 0.5)
