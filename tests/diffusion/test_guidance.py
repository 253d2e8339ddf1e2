"""Guidance and the range of the data, on a network that tells labels apart."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from ditlab.diffusion import (
    Between,
    Bounded,
    ClassifierFree,
    Denoiser,
    DiffusionConfig,
    GuidanceConfig,
    LinearBeta,
    Prediction,
    RectifiedFlow,
    Schedule,
    points,
)
from ditlab.diffusion.denoiser import Point
from ditlab.errors import UserError
from ditlab.models import NULL, Condition

LABELS = Condition(torch.tensor([0, 2, 1]))


class Labelled(nn.Module):
    """Another function of the image for every label; keeps the labels and times it was asked about."""

    def __init__(self, channels: int, learned: bool):
        super().__init__()
        self.learned, self.asked = learned, []
        self.table = torch.randn(4, channels * (1 + learned), 1, 1, generator=torch.Generator().manual_seed(0)).double()

    def forward(self, x: Tensor, t: Tensor, condition: Condition) -> Tensor:
        self.asked.append((condition.labels.tolist(), t.tolist()))
        image = torch.cat([x, x], dim=1) if self.learned else x
        return torch.tanh(image * (1 + t.view(-1, 1, 1, 1) / 1000) + self.table[condition.labels])  # NULL: the last row


def image(channels: int = 4) -> Tensor:
    return torch.randn(3, channels, 2, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def at(schedule: Schedule, t: float) -> Point:
    return points(schedule, [t])[0]


def paper(channels: int = 4) -> tuple[Labelled, Denoiser, Point]:
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
    found = denoise(x, point, LABELS)
    output = network(x, torch.full((3,), point.shown), LABELS)
    assert torch.equal(found.epsilon, output[:, :4])
    assert found.variance is not None
    torch.testing.assert_close(found.variance, (output[:, 4:] + 1) / 2)  # 0 the posterior's, 1 beta's
    torch.testing.assert_close(point.alpha * found.x0 + point.sigma * found.epsilon, x)
    assert network.asked[0] == (LABELS.labels.tolist(), [500.0] * 3)


def test_scale_1_asks_once_and_changes_nothing() -> None:
    network, denoise, point = paper()
    same(ClassifierFree(denoise, GuidanceConfig(1.0))(image(), point, LABELS), denoise(image(), point, LABELS))
    assert [labels for labels, _ in network.asked] == [[0, 2, 1]] * 2


@pytest.mark.parametrize("scale", [0.0, 0.5, 1.5, 4.0])
def test_guidance_is_one_batched_pass_and_the_formula_in_epsilon(scale: float) -> None:
    network, denoise, point = paper()
    x = image()
    found = ClassifierFree(denoise, GuidanceConfig(scale))(x, point, LABELS)
    assert network.asked == [([0, 2, 1, NULL, NULL, NULL], [500.0] * 6)]
    shown = torch.full((3,), 500.0)
    told, untold = network(x, shown, LABELS), network(x, shown, LABELS.null())
    epsilon = untold[:, :4] + scale * (told[:, :4] - untold[:, :4])
    torch.testing.assert_close(found.epsilon, epsilon, atol=1e-12, rtol=0)
    torch.testing.assert_close(found.x0, (x - point.sigma * epsilon) / point.alpha, atol=1e-10, rtol=0)
    torch.testing.assert_close(found.variance, (told[:, 4:] + 1) / 2)


@pytest.mark.parametrize("scale", [1.5, 4.0])
def test_published_behaviour_guides_the_first_three_channels_only(scale: float) -> None:
    network, denoise, point = paper()
    x = image()
    found = ClassifierFree(denoise, GuidanceConfig(scale, channels=3))(x, point, LABELS)
    shown = torch.full((3,), 500.0)
    told, untold = network(x, shown, LABELS), network(x, shown, LABELS.null())
    epsilon = told[:, :4].clone()
    epsilon[:, :3] = untold[:, :3] + scale * (told[:, :3] - untold[:, :3])
    torch.testing.assert_close(found.epsilon, epsilon, atol=1e-12, rtol=0)
    torch.testing.assert_close(found.x0, (x - point.sigma * epsilon) / point.alpha, atol=1e-10, rtol=0)
    torch.testing.assert_close(found.variance, (told[:, 4:] + 1) / 2)
    everything = ClassifierFree(denoise, GuidanceConfig(scale))(x, point, LABELS)
    assert not torch.allclose(everything.epsilon[:, 3], found.epsilon[:, 3], atol=1e-3)


@pytest.mark.parametrize("channels", [0, 4, 9])
def test_as_many_channels_as_there_are_is_all_of_them(channels: int) -> None:
    _, denoise, point = paper()
    same(
        ClassifierFree(denoise, GuidanceConfig(2.0, channels=channels))(image(), point, LABELS),
        ClassifierFree(denoise, GuidanceConfig(2.0))(image(), point, LABELS),
    )


def test_guidance_acts_within_its_interval() -> None:
    network, schedule = Labelled(2, learned=False), RectifiedFlow()
    denoise = Denoiser(network, schedule, "velocity", learned_variance=False)
    guided = ClassifierFree(denoise, GuidanceConfig(3.0, low=0.25, high=0.75))
    sizes = {}
    for t in (0.1, 0.25, 0.5, 0.75, 0.9, 1.0):
        network.asked.clear()
        found = guided(image(2), at(schedule, t), LABELS)
        sizes[t] = [len(labels) for labels, _ in network.asked]
        if sizes[t] == [3]:
            same(found, denoise(image(2), at(schedule, t), LABELS))
    assert sizes == {0.1: [3], 0.25: [6], 0.5: [6], 0.75: [6], 0.9: [3], 1.0: [3]}


@pytest.mark.parametrize("target", ["velocity", "v", "x0"])
@pytest.mark.parametrize("t", [1.0, 0.4])
def test_guidance_is_the_same_push_for_every_target(target: str, t: float) -> None:
    """Data and noise are affine in each target, so pushing the output pushes both; at pure noise too."""
    network, schedule = Labelled(2, learned=False), RectifiedFlow()
    denoise, x, point = Denoiser(network, schedule, target, False), image(2), at(schedule, t)
    found = ClassifierFree(denoise, GuidanceConfig(2.5))(x, point, LABELS)
    shown = torch.full((3,), point.shown)
    told, untold = network(x, shown, LABELS), network(x, shown, LABELS.null())

    class Pushed(nn.Module):
        def forward(self, *_: object) -> Tensor:
            return untold + 2.5 * (told - untold)

    expected = Denoiser(Pushed(), schedule, target, False)(x, point, LABELS)
    torch.testing.assert_close(found.x0, expected.x0, atol=1e-12, rtol=0)
    torch.testing.assert_close(found.epsilon, expected.epsilon, atol=1e-12, rtol=0)


def test_bounded_keeps_the_data_in_range_and_the_noise_with_it() -> None:
    _, denoise, point = paper(2)
    low, high = torch.tensor([-4.0, -0.5]).view(2, 1, 1).double(), torch.tensor([3.0, 8.0]).view(2, 1, 1).double()
    x = image(2)
    free = ClassifierFree(denoise, GuidanceConfig(3.0))
    found, before = Bounded(free, low, high)(x, point, LABELS), free(x, point, LABELS)
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
    _, denoise, _ = paper()
    with pytest.raises(UserError) as caught:
        ClassifierFree(denoise, config)
    assert "\n" not in str(caught.value)
    for word in words:
        assert word in str(caught.value)


def test_the_papers_defaults_are_the_defaults() -> None:
    GuidanceConfig().check()
    DiffusionConfig().check()
    assert GuidanceConfig() == GuidanceConfig(scale=1.0, low=0.0, high=1.0, channels=0)
    assert DiffusionConfig() == DiffusionConfig("linear-beta", "epsilon", True, "uniform", 0.1, False)


@pytest.mark.parametrize("learned", [False, True])
def test_between_two_conditions_predictions_are_mixed(learned: bool):
    schedule = RectifiedFlow()
    denoiser = Denoiser(Labelled(2, learned), schedule, "velocity", learned)
    x = torch.randn(3, 2, 4, 4, generator=torch.Generator().manual_seed(1)).double()
    (point,) = points(schedule, [0.6])
    other = Condition(torch.tensor([1, 1, 0]))
    own, its = denoiser(x, point, LABELS), denoiser(x, point, other)
    weight = torch.tensor([0.0, 0.25, 1.0]).double().view(3, 1, 1, 1)
    mixed = Between(denoiser, other, weight)(x, point, LABELS)
    for name in ("x0", "epsilon", *(["variance"] if learned else [])):
        expected = (1 - weight) * getattr(own, name) + weight * getattr(its, name)
        torch.testing.assert_close(getattr(mixed, name), expected)
    torch.testing.assert_close(point.alpha * mixed.x0 + point.sigma * mixed.epsilon, x)
