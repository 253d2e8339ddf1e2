"""The losses, against distributions computed by torch.distributions in float64."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from specs import FixedNetwork
from torch import Tensor
from torch.distributions import Normal, kl_divergence

from ditlab.diffusion import DiffusionConfig, FlowMatching, Hybrid, LinearBeta, Positions
from ditlab.errors import UserError
from ditlab.models import NULL, Condition

PAPER = DiffusionConfig()
FLOW = DiffusionConfig("rectified-flow", "velocity", learned_variance=False, times="logit-normal")


class Says(FixedNetwork):
    """A network of one output, which records its inputs."""

    def __init__(self, output: Tensor):
        super().__init__()
        self.output = output
        self.shown: tuple[Tensor, Tensor, Tensor] | None = None

    def forward(self, x: Tensor, t: Tensor, condition: Condition, r: Tensor | None = None) -> Tensor:
        entry = condition.entries["labels"]
        self.shown = (x, t, torch.where(entry.present, entry.value, NULL))
        return self.output


def levels(n: int, seed: int) -> Tensor:
    """Pixels on the 256 levels of [-1, 1], both ends among them."""
    generator = torch.Generator().manual_seed(seed)
    pixels = torch.randint(256, (n, 2, 3, 3), generator=generator)
    pixels[:, :, 0, 0], pixels[:, :, 0, 1] = 0, 255
    return pixels.double() / 127.5 - 1


def bound(x0: Tensor, epsilon: Tensor, predicted: Tensor, variance: Tensor, row: int) -> Tensor:
    """The variational bound's term of one row, in bits a number, from the definition (Ho et al. 2020, equation 5)."""
    beta = np.linspace(1e-4, 2e-2, 1000)
    alpha_bar = np.cumprod(1 - beta)
    before = 1.0 if row == 0 else alpha_bar[row - 1]
    weight_x0 = math.sqrt(before) * beta[row] / (1 - alpha_bar[row])
    weight_x = math.sqrt(1 - beta[row]) * (1 - before) / (1 - alpha_bar[row])
    x_t = math.sqrt(alpha_bar[row]) * x0 + math.sqrt(1 - alpha_bar[row]) * epsilon
    x0_predicted = (x_t - math.sqrt(1 - alpha_bar[row]) * predicted) / math.sqrt(alpha_bar[row])
    kept = max(row, 1)  # the first row's posterior variance is 0; the next one's stands in for it
    true_variance = beta[kept] * (1 - alpha_bar[kept - 1]) / (1 - alpha_bar[kept])
    share = (variance + 1) / 2
    log_variance = share * math.log(beta[row]) + (1 - share) * math.log(true_variance)
    model = Normal(weight_x0 * x0_predicted + weight_x * x_t, (0.5 * log_variance).exp())
    if row:
        truth = Normal(weight_x0 * x0 + weight_x * x_t, torch.full_like(x0, math.sqrt(true_variance)))
        return (kl_divergence(truth, model) / math.log(2)).flatten(1).mean(dim=1)
    upper = torch.where(x0 > 0.999, 1.0, model.cdf(x0 + 1 / 255))
    lower = torch.where(x0 < -0.999, 0.0, model.cdf(x0 - 1 / 255))
    return (-(upper - lower).log2()).flatten(1).mean(dim=1)


def case(row: int, seed: int = 0, error: float = 0.5) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x0 = levels(4, seed)
    epsilon = torch.randn(x0.shape, generator=generator, dtype=torch.float64)
    predicted = epsilon + error * torch.randn(x0.shape, generator=generator, dtype=torch.float64)
    variance = 1.4 * torch.randn(x0.shape, generator=generator, dtype=torch.float64)
    return x0, epsilon, predicted, variance


@pytest.mark.parametrize("row", [0, 1, 2, 10, 500, 998, 999])
def test_the_variational_term_is_the_bounds_in_bits(row: int) -> None:
    x0, epsilon, predicted, variance = case(row)
    loss = PAPER.build_loss()
    assert isinstance(loss, Hybrid)
    t = torch.full((4,), row / 999, dtype=torch.float64)
    found = loss.variational(x0, predicted - epsilon, variance, t)
    torch.testing.assert_close(found, bound(x0, epsilon, predicted, variance, row), rtol=1e-7, atol=1e-12)
    assert found.shape == (4,)


def test_outer_levels_own_the_tails() -> None:
    """Black and white pixels, predicted far outside the range: nearly certain, so nearly no bits."""
    x0 = torch.tensor([-1.0, 1.0], dtype=torch.float64).view(2, 1, 1, 1)
    loss = PAPER.build_loss()
    assert isinstance(loss, Hybrid)
    variance, t = torch.zeros_like(x0), torch.zeros(2)
    # the mean moves against the error of epsilon, by sigma / alpha, here about 0.01, times it
    outside, inside = torch.tensor([50.0, -50.0]).view(2, 1, 1, 1).double(), torch.tensor([-2.0, 2.0]).view(2, 1, 1, 1)
    assert (loss.variational(x0, outside, variance, t) < 1e-9).all()
    assert (loss.variational(x0, inside.double(), variance, t) > 2).all()


def test_a_perfect_network_has_no_divergence_where_there_is_one_true_variance() -> None:
    x0, epsilon, _, variance = case(500)
    loss = PAPER.build_loss()
    assert isinstance(loss, Hybrid)
    t = torch.full((4,), 500 / 999, dtype=torch.float64)
    at_posterior = loss.variational(x0, torch.zeros_like(epsilon), torch.full_like(variance, -1.0), t)
    assert at_posterior.abs().max() < 1e-12


def test_the_hybrid_is_squared_error_plus_the_term() -> None:
    rows = [0, 3, 400, 999]
    x0, epsilon, predicted, variance = case(0, error=0.2)
    draws = {"t": torch.tensor(rows).double() / 999, "epsilon": epsilon.float(), "drop": torch.zeros(4).bool()}
    network = Says(torch.cat([predicted, variance], dim=1).float())
    found = PAPER.build_loss()(network, x0.float(), Condition.of_labels(torch.arange(4)), draws)
    terms = [bound(x0, epsilon, predicted, variance, row)[k] for k, row in enumerate(rows)]
    expected = (predicted - epsilon).square().flatten(1).mean(dim=1) + torch.stack(terms)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), expected, rtol=2e-4, atol=1e-5)
    assert network.shown is not None
    assert network.shown[1].tolist() == [float(row) for row in rows]
    alpha_bar = np.cumprod(1 - np.linspace(1e-4, 2e-2, 1000))[rows]
    scale, noise = (torch.from_numpy(np.sqrt(v)).view(4, 1, 1, 1) for v in (alpha_bar, 1 - alpha_bar))
    torch.testing.assert_close(network.shown[0].double(), scale * x0 + noise * epsilon, atol=1e-5, rtol=0)


@pytest.mark.parametrize("row", [0, 300])
def test_the_bound_trains_the_variance_alone(row: int) -> None:
    x0, epsilon, predicted, variance = case(row, error=0.2)
    output = torch.cat([predicted, variance], dim=1).float().requires_grad_()
    draws = {"t": torch.full((4,), row / 999).double(), "epsilon": epsilon.float(), "drop": torch.zeros(4).bool()}
    PAPER.build_loss()(Says(output), x0.float(), Condition.of_labels(torch.arange(4)), draws).sum().backward()
    assert output.grad is not None
    mean, spread = output.grad.double().chunk(2, dim=1)
    of_the_square = 2 * (predicted - epsilon) / predicted[0].numel()
    torch.testing.assert_close(mean, of_the_square, atol=1e-7, rtol=1e-4)
    variance.requires_grad_()
    (direct,) = torch.autograd.grad(bound(x0, epsilon, predicted, variance, row).sum(), variance)
    assert (direct != 0).all()
    torch.testing.assert_close(spread, direct, atol=1e-5, rtol=1e-3)


@pytest.mark.parametrize(
    ("config", "truth"),
    [
        (FLOW, lambda x0, e, a, s: e - x0),
        (replace(FLOW, target="v"), lambda x0, e, a, s: a * e - s * x0),
        (replace(FLOW, target="x0", times="uniform"), lambda x0, e, a, s: x0),
        (replace(PAPER, learned_variance=False), lambda x0, e, a, s: e),
    ],
)
def test_flow_matching_is_the_squared_error_of_its_target(config: DiffusionConfig, truth: object) -> None:
    x0, epsilon, output, _ = case(0)
    loss = config.build_loss()
    assert isinstance(loss, FlowMatching)
    t = torch.tensor([0.1, 0.4, 0.6, 0.9], dtype=torch.float64)
    draws = {"t": t, "epsilon": epsilon, "drop": torch.zeros(4).bool()}
    found = loss(Says(output), x0, Condition.of_labels(torch.arange(4)), draws)
    if config.schedule == "rectified-flow":
        alpha, sigma = 1 - t, t
    else:
        alpha_bar = np.cumprod(1 - np.linspace(1e-4, 2e-2, 1000))[(t * 999).round().long().numpy()]
        alpha, sigma = torch.from_numpy(np.sqrt(alpha_bar)), torch.from_numpy(np.sqrt(1 - alpha_bar))
    target = truth(x0, epsilon, alpha.view(4, 1, 1, 1), sigma.view(4, 1, 1, 1))  # type: ignore[operator]
    torch.testing.assert_close(found.double(), (output - target).square().flatten(1).mean(dim=1), rtol=1e-5, atol=1e-6)


def test_dropped_labels_are_hidden_from_the_network() -> None:
    x0, epsilon, output, _ = case(0)
    drop = torch.tensor([True, False, False, True])
    for config, said in ((FLOW, output), (PAPER, torch.cat([output, output], dim=1))):
        network = Says(said.float())
        draws = {"t": torch.full((4,), 0.5), "epsilon": epsilon.float(), "drop": drop}
        config.build_loss()(network, x0.float(), Condition.of_labels(torch.arange(4)), draws)
        assert network.shown is not None
        assert network.shown[2].tolist() == [NULL, 1, 2, NULL]


def largest_gap(sample: Tensor, distribution: Tensor) -> float:
    """Kolmogorov and Smirnov's distance times the root of the count: above 1.95 once in a thousand."""
    empirical = torch.arange(1, len(sample) + 1, dtype=torch.float64) / len(sample)
    return float((distribution.double() - empirical).abs().max()) * math.sqrt(len(sample))


def test_times_are_uniform_or_logit_normal() -> None:
    uniform = replace(FLOW, times="uniform").build_loss().draw_times(Positions(0, 0, 20_000)).sort().values
    assert largest_gap(uniform, uniform) < 1.95
    logit_normal = FLOW.build_loss().draw_times(Positions(0, 0, 20_000)).sort().values
    assert largest_gap(logit_normal, Normal(0.0, 1.0).cdf(torch.logit(logit_normal.double()))) < 1.95
    assert largest_gap(logit_normal, logit_normal) > 5  # it is not uniform


@pytest.mark.parametrize("config", [PAPER, replace(PAPER, learned_variance=False)])
def test_the_tables_rows_are_drawn_evenly_both_ends_included(config: DiffusionConfig) -> None:
    t = config.build_loss().draw_times(Positions(0, 0, 200_000))
    rows = LinearBeta().index(t)
    assert torch.equal(rows.double() / 999, t)
    counts = torch.bincount(rows, minlength=1000).double()
    assert len(counts) == 1000
    chi_square = ((counts - 200) ** 2 / 200).sum().item()
    assert 860 < chi_square < 1140  # 999 degrees of freedom, three standard deviations of 45


def test_draws_depend_on_the_generator_alone() -> None:
    for config in (PAPER, FLOW, replace(FLOW, times="uniform")):
        loss = config.build_loss()
        torch.manual_seed(0)
        first = loss.draw(Positions(3, 0, 64), (2, 4, 6))
        torch.manual_seed(99)
        before = torch.random.get_rng_state()
        again = loss.draw(Positions(3, 0, 64), (2, 4, 6))
        other = loss.draw(Positions(4, 0, 64), (2, 4, 6))
        assert torch.equal(torch.random.get_rng_state(), before)
        assert first.keys() == {"t", "drop", "epsilon"}
        assert first["epsilon"].shape == (64, 2, 4, 6)
        for name in first:
            assert torch.equal(first[name], again[name]), name
        assert not torch.equal(first["t"], other["t"])
        assert not torch.equal(first["epsilon"], other["epsilon"])


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5])
def test_the_asked_share_of_labels_is_dropped(share: float) -> None:
    loss = replace(PAPER, condition_dropout=share).build_loss()
    drop = loss.draw(Positions(0, 0, 20_000), (1, 1, 1))["drop"]
    assert abs(drop.double().mean().item() - share) <= 3.3 * math.sqrt(share * (1 - share) / 20_000)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"schedule": "cosine"}, ["'cosine'", "linear-beta", "rectified-flow"]),
        ({"target": "epsilom"}, ["'epsilom'", "did you mean 'epsilon'"]),
        ({"schedule": "rectified-flow", "learned_variance": False}, ["'epsilon'", "'velocity'"]),
        ({"target": "v"}, ["learned variance", "'epsilon'"]),
        ({"zero_snr": True}, ["zero SNR", "'v' or 'x0'"]),
        ({"zero_snr": True, "schedule": "rectified-flow", "target": "velocity"}, ["zero SNR", "'linear-beta'"]),
        ({"schedule": "rectified-flow", "target": "velocity"}, ["learned variance", "'linear-beta'"]),
        ({"times": "logit-normal"}, ["logit-normal", "'rectified-flow'"]),
        ({"condition_dropout": 1.0}, ["condition dropout 1.0"]),
        ({"condition_dropout": -0.1}, ["condition dropout -0.1"]),
        ({"condition_dropout": math.nan}, ["condition dropout nan"]),
    ],
)
def test_parts_that_do_not_go_together_are_refused_in_one_line(changes: dict[str, object], words: list[str]) -> None:
    with pytest.raises(UserError) as caught:
        replace(PAPER, **changes).build_loss()  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)
    for word in words:
        assert word in str(caught.value)


def test_the_direction_term_is_one_minus_the_cosine() -> None:
    generator = torch.Generator().manual_seed(0)
    x0, output = torch.randn(2, 5, 1, 4, 6, generator=generator)
    plain, turned = FLOW.build_loss(), replace(FLOW, direction=True).build_loss()
    draws = plain.draw(Positions(1, 0, 5), (1, 4, 6))
    condition = Condition.of_labels(torch.zeros(5, dtype=torch.int64))

    added = turned(Says(output), x0, condition, draws) - plain(Says(output), x0, condition, draws)
    for sample in range(5):
        target, said = (draws["epsilon"] - x0)[sample].flatten().double(), output[sample].flatten().double()
        cosine = (target @ said / (target @ target).sqrt() / (said @ said).sqrt()).item()
        assert added[sample].item() == pytest.approx(1 - cosine, abs=1e-5)


def test_shifted_training_times_are_those_of_a_shifted_grid() -> None:
    """Esser et al. 2024, equation 23, with its inverse: t = u / (shift - (shift - 1) u)."""
    shift = 3.0
    plain, shifted = (replace(FLOW, shift=each).build_loss().draw_times(Positions(0, 0, 64)) for each in (1.0, shift))
    torch.testing.assert_close(shifted / (shift - (shift - 1) * shifted), plain)
    assert (shifted > plain).all()


@pytest.mark.parametrize("config", [replace(PAPER, shift=3.0), replace(FLOW, shift=0.0), replace(FLOW, shift=-1.0)])
def test_an_impossible_shift_is_refused(config: DiffusionConfig) -> None:
    with pytest.raises(UserError, match="must be above 0, and 1 but for schedule 'rectified-flow'"):
        config.check()
