"""What the progress line and metrics.jsonl say of speed, against a clock of our own."""

from __future__ import annotations

import pytest
import torch

from ditlab.runtime.distributed import ALONE, Processes
from ditlab.train.speed import Speed, matrix_rate


class Clock:
    """Time that passes when it is told to."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr("ditlab.train.speed.time.perf_counter", made)
    return made


def test_images_a_second_are_of_training_alone(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ditlab.train.speed.matrix_rate", lambda *_: 5e9)
    speed = Speed("fp32", 6e6, torch.device("cpu"), Processes(rank=0, size=2))
    clock.now += 7  # building, before the first step
    speed.start()
    for _ in range(4):
        clock.now += 0.5
        speed.add(100)
        with speed.paused():
            clock.now += 30  # a picture
            assert speed.images_per_second == pytest.approx(200)  # as the progress line says meanwhile
    assert speed.images_per_second == pytest.approx(200)
    # 200 images/s of 6e6 operations each, of two processes' 5e9 a second
    assert speed.utilisation == pytest.approx(200 * 6e6 / 1e10)
    speed.loss = 0.25
    assert str(speed).startswith("200 images/s, 12% MFU, ")
    assert str(speed).endswith("GiB, loss 0.2500")
    row = speed.row()
    assert (row["images_per_second"], row["seconds"], row["mfu"]) == (200, 2.0, 0.12)


def test_a_network_that_is_not_counted_has_no_utilisation(clock: Clock) -> None:
    speed = Speed("fp32", 0.0, torch.device("cpu"), ALONE)
    clock.now += 1
    speed.add(3)
    assert "MFU" not in str(speed)
    assert "mfu" not in speed.row()


def test_the_matrix_rate_is_operations_over_time(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    def slow(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        clock.now += 0.25
        return a

    monkeypatch.setattr("ditlab.train.speed.torch.mm", slow)
    assert matrix_rate(torch.device("cpu"), "fp32") == pytest.approx(2 * 1024**3 / 0.25)


def test_rows_are_windows_and_the_step_that_compiles_counts_in_none(
    clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ditlab.train.speed.matrix_rate", lambda *_: 5e9)
    speed = Speed("fp32", 6e6, torch.device("cpu"), ALONE)
    speed.start()
    clock.now += 60  # compiles
    speed.add(100)
    for _ in range(2):
        clock.now += 0.5
        speed.add(100)
    rows = [speed.row()]
    for _ in range(2):
        clock.now += 1.0
        speed.add(100)
    rows.append(speed.row())
    assert [row["images_per_second"] for row in rows] == [200, 100]
    assert [row["mfu"] for row in rows] == [pytest.approx(0.24), pytest.approx(0.12)]
    assert [row["mfu_of_tflops"] for row in rows] == [0.005, 0.005]
    assert rows[-1]["seconds"] == 63
    assert speed.images_per_second == 100  # of the last window, as no step came since
