"""The faster number of CPU threads is taken, unless one is set."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest
import torch

from ditlab.runtime import threads
from ditlab.runtime.distributed import ALONE, Processes
from ditlab.runtime.threads import describe, thread_counts, time_threads


@pytest.fixture(autouse=True)
def _same_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("fast", [1, 2])
def test_the_faster_number_stays_set_and_both_times_are_known(fast: int):
    seconds = time_threads(lambda: time.sleep(0.002 if torch.get_num_threads() == fast else 0.03), (1, 2))
    assert torch.get_num_threads() == fast
    assert list(seconds) == [1, 2]
    assert seconds[fast] < 0.03 <= seconds[3 - fast]
    assert describe({1: 0.41, 2: 2.0}) == "CPU threads: 1 (OMP_NUM_THREADS); a step takes 0.41 s with 1 and 2 s with 2"


def test_one_slow_step_among_others_does_not_count():
    calls = iter([0.0, 0.05, 0.0, 0.0])
    assert time_threads(lambda: time.sleep(next(calls)), (1,))[1] < 0.04


def test_a_number_that_is_set_is_not_chosen(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(threads, "ALL", 4)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    torch.set_num_threads(2)
    assert thread_counts(0, ALONE) == (1, 4)
    assert thread_counts(3, ALONE) == (3,)
    assert thread_counts(0, Processes(size=2)) == (2,)
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    assert thread_counts(0, ALONE) == (2,)
    assert thread_counts(3, ALONE) == (3,)
    monkeypatch.delenv("OMP_NUM_THREADS")
    monkeypatch.setattr(threads, "ALL", 1)
    assert thread_counts(0, ALONE) == (2,)
