"""Guidance and clamped data, on a network whose output depends on the label."""

from __future__ import annotations

import math

import pytest
import torch
from specs import FixedNetwork
from torch import Tensor

from ditlab.diffusion import (
    ClampedX0,
    ClassifierFreeGuidance,
    Denoiser,
    DiffusionConfig,
    Guidance,
    GuidanceConfig,
    Interpolated,
    LinearBeta,
    Prediction,
    Query,
    RectifiedFlow,
    Schedule,
    ScheduleStep,
    schedule_steps,
)
from ditlab.diffusion.denoiser import DATA
from ditlab.errors import UserError
from ditlab.models import NULL, Condition

LABELS = Condition.of_labels(torch.tensor([0, 2, 1]))


class Labelled(FixedNetwork):
    """Another function of the image for every label; records the labels and times of its calls."""

    def __init__(self, channels: int, learned: bool):
        super().__init__()
        self.learned, self.calls = learned, []
        self.table = torch.randn(4, channels * (1 + learned), 1, 1, generator=torch.Generator().manual_seed(0)).double()

    def forward(self, x: Tensor, t: Tensor, condition: Condition, r: Tensor | None = None) -> Tensor:
        entry = condition.entries["labels"]
        labels = torch.where(entry.present, entry.value, NULL)  # NULL: the last row
        self.calls.append((labels.tolist(), t.tolist()))
        image = torch.cat([x, x], dim=1) if self.learned else x
        return torch.tanh(image * (1 + t.view(-1, 1, 1, 1) / 1000) + self.table[labels])


def image(channels: int = 4) -> Tensor:
    return torch.randn(3, channels, 2, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def at(schedule: Schedule, t: float) -> ScheduleStep:
    return schedule_steps(schedule, [t])[0]


def guided(denoiser: Denoiser, guidance: Guidance, x: Tensor, step: ScheduleStep) -> Prediction:
    """The prediction of a query under guidance."""
    query = Query(x, step, DATA)
    return guidance.combine(query, denoiser([guidance.expand(query, LABELS)])[0])


def paper(channels: int = 4) -> tuple[Labelled, Denoiser, ScheduleStep]:
    network, schedule = Labelled(channels, learned=True), LinearBeta()
    return network, Denoiser(network, schedule, "epsilon", learned_variance=True), at(schedule, 0.5)


def same(found: Prediction, expected: Prediction) -> None:
    assert torch.equal(found.x0, expected.x0)
    assert torch.equal(found.epsilon, expected.epsilon)
    assert (found.variance is None) == (expected.variance is None)
    if found.variance is not None and expected.variance is not None:
        assert torch.equal(found.variance, expected.variance)


def test_the_denoiser_reads_the_networks_output() -> None:
    network, denoise, point = paper()
    x = image()
    found = denoise.predict(x, point, LABELS)
    output = network(x, torch.full((3,), 500.0), LABELS)
    assert torch.equal(found.epsilon, output[:, :4])
    assert found.variance is not None
    torch.testing.assert_close(found.variance, (output[:, 4:] + 1) / 2)  # 0 the posterior's, 1 beta's
    torch.testing.assert_close(point.alpha * found.x0 + point.sigma * found.epsilon, x)
    assert network.calls[0] == ([0, 2, 1], [500.0] * 3)


def test_scale_1_is_one_evaluation_without_guidance() -> None:
    network, denoise, point = paper()
    same(
        guided(denoise, ClassifierFreeGuidance(GuidanceConfig(1.0)), image(), point),
        denoise.predict(image(), point, LABELS),
    )
    assert [labels for labels, _ in network.calls] == [[0, 2, 1]] * 2


@pytest.mark.parametrize("scale", [0.0, 0.5, 1.5, 4.0])
def test_guidance_is_one_batched_pass_and_the_formula_in_epsilon(scale: float) -> None:
    network, denoise, point = paper()
    x = image()
    found = guided(denoise, ClassifierFreeGuidance(GuidanceConfig(scale)), x, point)
    assert network.calls == [([0, 2, 1, NULL, NULL, NULL], [500.0] * 6)]
    times = torch.full((3,), 500.0)
    conditional, unconditional = network(x, times, LABELS), network(x, times, LABELS.null())
    epsilon = unconditional[:, :4] + scale * (conditional[:, :4] - unconditional[:, :4])
    torch.testing.assert_close(found.epsilon, epsilon, atol=1e-12, rtol=0)
    torch.testing.assert_close(found.x0, (x - point.sigma * epsilon) / point.alpha, atol=1e-10, rtol=0)
    torch.testing.assert_close(found.variance, (conditional[:, 4:] + 1) / 2)


@pytest.mark.parametrize("scale", [1.5, 4.0])
def test_published_behaviour_guides_the_first_three_channels_only(scale: float) -> None:
    network, denoise, point = paper()
    x = image()
    found = guided(denoise, ClassifierFreeGuidance(GuidanceConfig(scale, channels=3)), x, point)
    times = torch.full((3,), 500.0)
    conditional, unconditional = network(x, times, LABELS), network(x, times, LABELS.null())
    epsilon = conditional[:, :4].clone()
    epsilon[:, :3] = unconditional[:, :3] + scale * (conditional[:, :3] - unconditional[:, :3])
    torch.testing.assert_close(found.epsilon, epsilon, atol=1e-12, rtol=0)
    torch.testing.assert_close(found.x0, (x - point.sigma * epsilon) / point.alpha, atol=1e-10, rtol=0)
    torch.testing.assert_close(found.variance, (conditional[:, 4:] + 1) / 2)
    everything = guided(denoise, ClassifierFreeGuidance(GuidanceConfig(scale)), x, point)
    assert not torch.allclose(everything.epsilon[:, 3], found.epsilon[:, 3], atol=1e-3)


@pytest.mark.parametrize("channels", [0, 4, 9])
def test_as_many_channels_as_there_are_is_all_of_them(channels: int) -> None:
    _, denoise, point = paper()
    same(
        guided(denoise, ClassifierFreeGuidance(GuidanceConfig(2.0, channels=channels)), image(), point),
        guided(denoise, ClassifierFreeGuidance(GuidanceConfig(2.0)), image(), point),
    )


def test_guidance_acts_within_its_interval() -> None:
    network, schedule = Labelled(2, learned=False), RectifiedFlow()
    denoise = Denoiser(network, schedule, "velocity", learned_variance=False)
    guidance = ClassifierFreeGuidance(GuidanceConfig(3.0, low=0.25, high=0.75))
    sizes = {}
    for t in (0.1, 0.25, 0.5, 0.75, 0.9, 1.0):
        network.calls.clear()
        found = guided(denoise, guidance, image(2), at(schedule, t))
        sizes[t] = [len(labels) for labels, _ in network.calls]
        if sizes[t] == [3]:
            same(found, denoise.predict(image(2), at(schedule, t), LABELS))
    assert sizes == {0.1: [3], 0.25: [6], 0.5: [6], 0.75: [6], 0.9: [3], 1.0: [3]}


@pytest.mark.parametrize("target", ["velocity", "v", "x0"])
@pytest.mark.parametrize("t", [1.0, 0.4])
def test_guidance_is_the_same_push_for_every_target(target: str, t: float) -> None:
    """Data and noise are affine in each target, so pushing the output pushes both; at pure noise too."""
    network, schedule = Labelled(2, learned=False), RectifiedFlow()
    denoise, x, point = Denoiser(network, schedule, target, False), image(2), at(schedule, t)
    found = guided(denoise, ClassifierFreeGuidance(GuidanceConfig(2.5)), x, point)
    times = torch.full((3,), 1000.0 * point.t)
    conditional, unconditional = network(x, times, LABELS), network(x, times, LABELS.null())

    class Pushed(FixedNetwork):
        def forward(self, x: Tensor, t: Tensor, condition: Condition, r: Tensor | None = None) -> Tensor:
            return unconditional + 2.5 * (conditional - unconditional)

    expected = Denoiser(Pushed(), schedule, target, False).predict(x, point, LABELS)
    torch.testing.assert_close(found.x0, expected.x0, atol=1e-12, rtol=0)
    torch.testing.assert_close(found.epsilon, expected.epsilon, atol=1e-12, rtol=0)


def test_clamped_x0_is_in_range_and_epsilon_matches_it() -> None:
    _, denoise, point = paper(2)
    low, high = torch.tensor([-4.0, -0.5]).view(2, 1, 1).double(), torch.tensor([3.0, 8.0]).view(2, 1, 1).double()
    x = image(2)
    free = ClassifierFreeGuidance(GuidanceConfig(3.0))
    found, before = guided(denoise, ClampedX0(free, low, high), x, point), guided(denoise, free, x, point)
    assert (before.x0 > high).any()
    assert (before.x0 < low).any()
    inside = (before.x0 >= low) & (before.x0 <= high)
    assert inside.any()
    assert torch.equal(found.x0, torch.minimum(torch.maximum(before.x0, low), high))
    torch.testing.assert_close(point.alpha * found.x0 + point.sigma * found.epsilon, x, atol=1e-12, rtol=0)
    torch.testing.assert_close(found.epsilon[inside], before.epsilon[inside], atol=1e-10, rtol=0)
    assert torch.equal(found.variance, before.variance)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("config", "words"),
    [
        (GuidanceConfig(-1.0), ["guidance scale -1.0", "1 is off"]),
        (GuidanceConfig(1000.0), ["guidance scale 1000.0"]),
        (GuidanceConfig(math.nan), ["guidance scale nan"]),
        (GuidanceConfig(2.0, low=0.6, high=0.4), ["0.6 to 0.4"]),
        (GuidanceConfig(2.0, low=-0.1), ["-0.1 to 1.0", "0 to 1"]),
        (GuidanceConfig(2.0, high=1.5), ["0.0 to 1.5", "0 to 1"]),
        (GuidanceConfig(2.0, channels=-3), ["-3 channels", "0 is all"]),
    ],
)
def test_senseless_guidance_is_refused_in_one_line(config: GuidanceConfig, words: list[str]) -> None:
    with pytest.raises(UserError) as caught:
        ClassifierFreeGuidance(config)
    assert "\n" not in str(caught.value)
    for word in words:
        assert word in str(caught.value)


def test_the_papers_defaults_are_the_defaults() -> None:
    GuidanceConfig().check()
    DiffusionConfig().check()
    assert GuidanceConfig() == GuidanceConfig(scale=1.0, low=0.0, high=1.0, channels=0)
    assert DiffusionConfig() == DiffusionConfig("linear-beta", "epsilon", True, "uniform", 0.1, False, 1000.0)


@pytest.mark.parametrize("learned", [False, True])
def test_between_two_conditions_predictions_are_mixed(learned: bool):
    schedule = RectifiedFlow()
    denoiser = Denoiser(Labelled(2, learned), schedule, "velocity", learned)
    x = torch.randn(3, 2, 4, 4, generator=torch.Generator().manual_seed(1)).double()
    point = at(schedule, 0.6)
    other = Condition.of_labels(torch.tensor([1, 1, 0]))
    own, its = denoiser.predict(x, point, LABELS), denoiser.predict(x, point, other)
    weight = torch.tensor([0.0, 0.25, 1.0]).double().view(3, 1, 1, 1)
    mixed = guided(denoiser, Interpolated(Guidance(), other, weight), x, point)
    for name in ("x0", "epsilon", *(["variance"] if learned else [])):
        expected = (1 - weight) * getattr(own, name) + weight * getattr(its, name)
        torch.testing.assert_close(getattr(mixed, name), expected)
    torch.testing.assert_close(point.alpha * mixed.x0 + point.sigma * mixed.epsilon, x)


def test_a_negative_condition_takes_the_place_of_the_null() -> None:
    network, denoise, point = paper()
    found = guided(
        denoise, ClassifierFreeGuidance(GuidanceConfig(2.0), Condition.of_labels(torch.tensor([1]))), image(), point
    )
    negative = Condition.of_labels(torch.tensor([1, 1, 1]))
    conditional, unconditional = (denoise.predict(image(), point, each) for each in (LABELS, negative))
    expected = unconditional.epsilon + 2 * (conditional.epsilon - unconditional.epsilon)
    torch.testing.assert_close(found.epsilon, expected, atol=1e-12, rtol=0)
    assert network.calls[0][0] == [0, 2, 1, 1, 1, 1]
