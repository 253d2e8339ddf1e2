"""Whole trajectories beside diffusers' schedulers, on the same network's outputs and the same noise."""

from __future__ import annotations

from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from specs import FixedNetwork
from torch import Tensor, nn

from ditlab.diffusion import Denoiser, Guidance, LinearBeta, RectifiedFlow, Trajectory, sample
from ditlab.models import Condition

CONDITION = Condition.of_labels(torch.zeros(3, dtype=torch.int64))


class Tiny(FixedNetwork):
    """A fixed nonlinear function of image and time, about as large as noise."""

    def __init__(self, channels: int):
        super().__init__()
        self.mix = nn.Conv2d(2, channels, 3, padding=1, dtype=torch.float64)
        generator = torch.Generator().manual_seed(0)
        for parameter in self.parameters():
            nn.init.normal_(parameter, std=0.4, generator=generator)

    def forward(self, x: Tensor, t: Tensor, condition: Condition, r: Tensor | None = None) -> Tensor:
        t = t.double().view(-1, 1, 1, 1) / 1000
        return torch.tanh(self.mix(x.double()) + t)


def start() -> Tensor:
    return torch.randn(3, 2, 4, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def ours(network: Tiny, sampler: str, steps: int, learned: bool) -> tuple[list[Tensor], list[Tensor]]:
    generator, x = torch.Generator().manual_seed(2), start()
    denoiser = Denoiser(network, LinearBeta(), "epsilon", learned)

    def noise() -> Tensor:
        return torch.randn(x.shape, generator=generator, dtype=x.dtype)

    with torch.no_grad():
        trajectory = Trajectory(sampler, denoiser.schedule, steps, Guidance(), CONDITION, x, noise)
        states = list(sample(trajectory, denoiser))
    return [state.x_s for state in states], [state.x0 for state in states]


def theirs(network: Tiny, scheduler: Any, steps: int, **kwargs: object) -> tuple[list[Tensor], list[Tensor]]:
    x, states, data = start(), [], []
    # Diffusers keeps its table in float32; with one in float64 what is left to compare is the method.
    scheduler.alphas_cumprod = torch.from_numpy(np.cumprod(1 - np.linspace(1e-4, 2e-2, 1000)))
    scheduler.set_timesteps(steps)
    with torch.no_grad():
        for t in scheduler.timesteps:
            output = network(x, torch.full((3,), float(t)), CONDITION)
            result = scheduler.step(output, t, x, **kwargs)
            x = result.prev_sample
            states.append(x)
            if "pred_original_sample" in result:
                data.append(result.pred_original_sample)
    return states, data


def assert_same(found: list[Tensor], expected: list[Tensor], tolerance: float) -> None:
    assert len(found) == len(expected)
    for here, there in zip(found, expected, strict=True):
        torch.testing.assert_close(here, there.double(), atol=tolerance * there.abs().max().item(), rtol=0)


@pytest.mark.parametrize("steps", [10, 47, 250])
def test_ddpm_with_learned_range(steps: int) -> None:
    network = Tiny(4)
    scheduler = diffusers.DDPMScheduler(
        beta_schedule="linear", variance_type="learned_range", timestep_spacing="linspace", clip_sample=False
    )
    expected = theirs(network, scheduler, steps, generator=torch.Generator().manual_seed(2))
    found = ours(network, "ddpm", steps, learned=True)
    assert_same(found[0], expected[0], 1e-8)
    assert_same(found[1], expected[1], 1e-8)


def test_ddpm_with_the_posteriors_variance() -> None:
    network = Tiny(2)
    scheduler = diffusers.DDPMScheduler(timestep_spacing="linspace", variance_type="fixed_small", clip_sample=False)
    expected = theirs(network, scheduler, 20, generator=torch.Generator().manual_seed(2))
    assert_same(ours(network, "ddpm", 20, learned=False)[0], expected[0], 1e-8)


@pytest.mark.parametrize("steps", [10, 50, 200])
def test_ddim(steps: int) -> None:
    network = Tiny(2)
    scheduler = diffusers.DDIMScheduler(clip_sample=False, set_alpha_to_one=True)
    assert scheduler.config["timestep_spacing"] == "leading"
    expected = theirs(network, scheduler, steps, eta=0.0)
    found = ours(network, "ddim", steps, learned=False)
    assert_same(found[0], expected[0], 1e-8)
    assert_same(found[1], expected[1], 1e-8)


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # of diffusers' own arithmetic
@pytest.mark.parametrize("steps", [5, 20, 50])
def test_dpm_solver_2m(steps: int) -> None:
    network = Tiny(2)
    scheduler = diffusers.DPMSolverMultistepScheduler(
        timestep_spacing="linspace", final_sigmas_type="zero", lower_order_final=True
    )
    expected = theirs(network, scheduler, steps)
    # its steps are taken in float32, whatever comes in
    assert_same(ours(network, "dpm-solver", steps, learned=False)[0], expected[0], 2e-5)


def test_euler_on_rectified_flow() -> None:
    network, x, steps = Tiny(2), start(), 12
    denoiser = Denoiser(network, RectifiedFlow(), "velocity", learned_variance=False)
    scheduler: Any = diffusers.FlowMatchEulerDiscreteScheduler()
    scheduler.set_timesteps(sigmas=np.linspace(1, 1 / steps, steps).tolist())
    expected: list[Tensor] = []
    with torch.no_grad():
        trajectory = Trajectory("euler", denoiser.schedule, steps, Guidance(), CONDITION, x, lambda: x)
        states = list(sample(trajectory, denoiser))
        for t in scheduler.timesteps:
            output = network(x, t.expand(3), CONDITION)
            x = scheduler.step(output, t, x, return_dict=False)[0]
            expected.append(x)
    assert_same([state.x_s for state in states], expected, 2e-6)
