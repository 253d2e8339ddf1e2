"""The order is a pure function of seed and position."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ditlab.data import DataOrder

counts = st.integers(1, 40)
seeds = st.integers(-(2**70), 2**70)


@settings(max_examples=60, deadline=None)
@given(counts, seeds, st.booleans(), st.integers(0, 200), st.integers(0, 90), st.integers(0, 90))
def test_a_batch_is_its_parts(count: int, seed: int, flip: bool, position: int, a: int, b: int) -> None:
    indices, flips = DataOrder(count, seed, flip).batch(position, a + b)
    other = DataOrder(count, seed, flip)
    second = other.batch(position + a, b)  # asked first: what came before must not matter
    first = other.batch(position, a)
    assert np.array_equal(indices, np.concatenate([first[0], second[0]]))
    assert np.array_equal(flips, np.concatenate([first[1], second[1]]))
    assert indices.dtype == np.int64
    assert flips.dtype == np.bool_
    assert indices.shape == flips.shape == (a + b,)


@settings(max_examples=40, deadline=None)
@given(counts, seeds, st.integers(0, 5))
def test_every_epoch_shows_every_image_once(count: int, seed: int, epoch: int) -> None:
    indices, flips = DataOrder(count, seed).batch(epoch * count, count)
    assert sorted(indices) == list(range(count))
    assert not flips.any()


def test_epochs_and_seeds_differ() -> None:
    order = DataOrder(100, 0, flip=True)
    first, second = order.batch(0, 100), order.batch(100, 100)
    other = DataOrder(100, 1, flip=True).batch(0, 100)
    for part in (0, 1):
        assert not np.array_equal(first[part], second[part])
        assert not np.array_equal(first[part], other[part])


def test_flips_are_fair_and_leave_the_order_alone() -> None:
    indices, flips = DataOrder(10_000, 3, flip=True).batch(0, 10_000)
    assert 4_700 < flips.sum() < 5_300
    assert np.array_equal(indices, DataOrder(10_000, 3).batch(0, 10_000)[0])


def test_order_is_frozen() -> None:
    """A change here changes what every resumed run sees next."""
    indices, flips = DataOrder(8, 0, flip=True).batch(5, 8)
    assert indices.tolist() == [3, 6, 7, 5, 3, 7, 2, 4]
    assert flips.tolist() == [False, False, False, False, False, True, True, False]


def test_few_epochs_stay_in_memory() -> None:
    order = DataOrder(4, 0)
    order.batch(0, 100)
    assert len(order._epochs) == 2


def test_impossible_requests(refuses) -> None:
    refuses(lambda: DataOrder(0, 0), "0 images")
    with pytest.raises(ValueError, match="-1"):
        DataOrder(3, 0).batch(-1, 2)
