"""Draws by position: slices of the whole to the bit, and distributions that tests cannot tell from the true ones."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from ditlab.diffusion.draws import RandomStream

SHAPES = st.sampled_from([(), (1,), (3,), (4, 3, 5), (2, 8, 8)])


def drawn(kind: str, stream: RandomStream, start: int, count: int, shape: tuple[int, ...]) -> torch.Tensor:
    more = (1000, shape) if kind == "integers" else (shape,)
    return getattr(stream, kind)(start, count, *more)


@pytest.mark.parametrize("kind", ["uniform", "normal", "integers"])
@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**63 - 1), first=st.integers(0, 2**40), cut=st.integers(0, 40), shape=SHAPES)
def test_any_slice_of_positions_is_the_slice_of_the_whole(kind: str, seed: int, first: int, cut: int, shape: tuple):
    stream = RandomStream(seed, "epsilon")
    whole = drawn(kind, stream, first, 40, shape)
    parts = [
        drawn(kind, RandomStream(seed, "epsilon"), first, cut, shape),
        drawn(kind, stream, first + cut, 40 - cut, shape),
    ]
    assert whole.shape == (40, *shape)
    assert torch.equal(torch.cat(parts), whole)


@given(ranks=st.sampled_from([1, 2, 3, 4, 7, 64]), step=st.integers(0, 10**6))
@settings(max_examples=20, deadline=None)
def test_the_shares_of_any_number_of_ranks_are_the_batch(ranks: int, step: int):
    share, stream = 8, RandomStream(5, "noise")
    whole = stream.normal(step * ranks * share, ranks * share, (4, 4))
    shares = [stream.normal(step * ranks * share + rank * share, share, (4, 4)) for rank in range(ranks)]
    assert torch.equal(torch.cat(shares), whole)


def test_normals_are_normal():
    values = RandomStream(0, "epsilon").normal(0, 2000, (257,)).double().flatten().numpy()
    assert stats.kstest(values, "norm").pvalue > 0.01
    assert abs(values.mean()) < 4 / len(values) ** 0.5
    assert abs(values.var() - 1) < 4 * (2 / len(values)) ** 0.5
    assert abs(stats.skew(values)) < 4 * (6 / len(values)) ** 0.5
    assert abs(stats.kurtosis(values)) < 4 * (24 / len(values)) ** 0.5
    assert 4 < np.abs(values).max() < 6.8


def test_uniforms_and_integers_are_uniform():
    stream = RandomStream(1, "t")
    values = stream.uniform(0, 200_000).double().numpy()
    assert stats.kstest(values, "uniform").pvalue > 0.01
    assert 0 <= values.min() < values.max() < 1
    counts = np.bincount(stream.integers(0, 200_000, 1000).numpy(), minlength=1000)
    assert len(counts) == 1000
    assert stats.chisquare(counts).pvalue > 0.01


def test_positions_pairs_names_and_seeds_are_independent():
    stream, count = RandomStream(2, "epsilon"), 100_000
    x = stream.normal(0, count, (2,)).double()
    others = {
        "the other of a pair": x[:, 1],
        "the next position": stream.normal(1, count, (2,))[:, 0].double(),
        "another name": RandomStream(2, "posterior").normal(0, count, (2,))[:, 0].double(),
        "another seed": RandomStream(3, "epsilon").normal(0, count, (2,))[:, 0].double(),
    }
    for name, other in others.items():
        assert not torch.equal(x[:, 0], other), name
        assert abs(float((x[:, 0] * other).mean())) < 4 / count**0.5, name
        assert abs(float((x[:, 0].square() * other.square()).mean() - 1)) < 4 * 8**0.5 / count**0.5, name


def test_the_numbers_stay_the_same():
    stream = RandomStream(0, "epsilon")
    assert stream.integers(0, 4, 1000).tolist() == [532, 548, 298, 711]
    np.testing.assert_allclose(stream.normal(7, 1, (3,))[0].numpy(), [2.03495, 0.525156, -1.64263], rtol=1e-5)
