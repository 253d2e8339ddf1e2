"""What a step trains on is read ahead, and is the same for any number of processes."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from ditlab.data import DataOrder
from ditlab.diffusion import Positions
from ditlab.diffusion.draws import RandomStream
from ditlab.errors import UserError
from ditlab.runtime.distributed import ALONE, Processes
from ditlab.train.prefetch import AHEAD, Prefetcher

CPU = torch.device("cpu")


class Numbers:
    """Images that are their own number."""

    count = 10

    def __init__(self) -> None:
        self.steps_read: list[int] = []

    def read(self, indices: np.ndarray, flips: np.ndarray, draws: dict[str, Tensor]) -> dict[str, Tensor]:
        self.steps_read.append(int(indices[0]))
        if len(self.steps_read) == 4:
            raise UserError("the fourth cannot be read")
        return {"x": torch.from_numpy(indices * np.where(flips, -1, 1))}

    def draw(self, positions: Positions) -> dict[str, Tensor]:
        return {"noise": positions.normal("noise", (2,)), "t": positions.uniform("t")}


def feed(first: int = 0, steps: int = 3, processes: Processes = ALONE) -> Prefetcher:
    return Prefetcher(Numbers(), DataOrder(10, 7, True), 5, 4, steps, first, processes, CPU)  # type: ignore[arg-type]


def test_a_step_is_its_images_and_the_draws_of_their_positions():
    made, order = feed(), DataOrder(10, 7, True)
    for step in range(3):
        batch, draws = made.take()
        indices, flips = order.batch(4 * step, 4)
        assert batch["x"].tolist() == (indices * np.where(flips, -1, 1)).tolist()
        assert torch.equal(draws["noise"], RandomStream(5, "noise").normal(4 * step, 4, (2,)))
        assert torch.equal(draws["t"], RandomStream(5, "t").uniform(4 * step, 4))
    made.close()


def test_a_resumed_run_is_fed_as_if_it_had_not_stopped():
    whole, late = feed(), feed(first=2)
    whole.take()
    whole.take()
    for first, second in zip(whole.take(), late.take(), strict=True):
        assert all(torch.equal(first[name], second[name]) for name in first)
    whole.close()
    late.close()


def test_processes_share_a_step_in_order():
    whole = feed()
    shares = [feed(processes=Processes(rank, 2)) for rank in range(2)]
    for _ in range(3):
        expected, parts = whole.take(), [share.take() for share in shares]
        for kind in (0, 1):
            for name, value in expected[kind].items():
                assert torch.equal(torch.cat([part[kind][name] for part in parts]), value), name
    for made in (whole, *shares):
        made.close()


def test_it_reads_ahead_and_no_further_than_the_end():
    made = feed(steps=3)
    task = made.task
    end = time.monotonic() + 10
    while len(task.steps_read) < AHEAD and time.monotonic() < end:  # type: ignore[attr-defined]
        time.sleep(0.01)
    assert len(task.steps_read) == AHEAD  # type: ignore[attr-defined]
    for _ in range(3):
        made.take()
    made.close()
    assert len(task.steps_read) == 3  # type: ignore[attr-defined]


def test_what_goes_wrong_while_reading_reaches_the_step_that_needs_it():
    made = feed(steps=9)
    for _ in range(3):
        made.take()
    with pytest.raises(UserError, match="the fourth"):
        made.take()
    made.close()


def test_a_profile_says_where_a_step_goes(tmp_path: Path, ditlab, tiny: list[str]):
    ended = ditlab("train", "digits", *tiny, "--out", tmp_path / "run", "--profile")
    assert ended.code == 0, ended
    assert "profile.txt" in ended.out
    table = (tmp_path / "run" / "profile" / "profile.txt").read_text()
    for phase in ("waiting for data", "forward and backward", "optimiser", "EMA", "aten::addmm"):
        assert phase in table
    assert (tmp_path / "run" / "profile" / "trace.json").stat().st_size > 10_000
