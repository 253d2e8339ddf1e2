"""Progress without a terminal: lines with what is done, the speed and the time left."""

from __future__ import annotations

import re
import threading
import time

import pytest
from rich.progress import Progress

from ditlab.runtime import progress
from ditlab.runtime.console import duration, progress_bar
from ditlab.runtime.progress import progress_line


def lines_after(seconds: float, capsys: pytest.CaptureFixture, shown: bool = True) -> str:
    with progress_bar(shown) as bar:
        bar.add_task("finished", total=2, completed=2, rate="")
        task = bar.add_task("reading", total=10, rate="")
        bar.update(task, completed=4)
        time.sleep(seconds)
    ended = capsys.readouterr()
    assert ended.err == ""
    return ended.out


def test_without_a_terminal_a_line_is_logged_at_intervals_though_nothing_advances(
    capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(progress, "INTERVAL", 0.05)
    out = lines_after(0.5, capsys)
    assert len(out.splitlines()) >= 2
    assert all(re.fullmatch(r"reading: 4 of 10, (.*/s, .* left|0 s so far)", line) for line in out.splitlines()), out
    assert lines_after(0.2, capsys, shown=False) == ""
    assert "progress" not in {thread.name for thread in threading.enumerate()}


def test_the_first_line_takes_ten_seconds(capsys: pytest.CaptureFixture):
    assert progress.INTERVAL == 10
    assert lines_after(0.1, capsys) == ""


def test_a_line_names_step_speed_and_time_left():
    now = 0.0
    bar = Progress(disable=True, get_time=lambda: now)
    task = bar.add_task("folder", total=1000, rate="7 images/s, loss 0.5", step="")
    plain = bar.add_task("encoding", total=None, rate="")
    for now in (10.0, 20.0):
        for each in (task, plain):
            bar.update(each, advance=100, step=f"step {now:.0f} of 100")
    lines = [progress_line(each) for each in bar.tasks]
    assert lines == [
        "folder: 200 of 1,000, step 20 of 100, 7 images/s, loss 0.5, 80 s left",
        "encoding: 200, step 20 of 100, 10/s, 20 s so far",
    ]


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.4, "0 s"),
        (89, "89 s"),
        (90, "2 min"),
        (3600, "60 min"),
        (2 * 3600, "2.0 h"),
        (72 * 3600, "3 days"),
        (1e9, "11,574 days"),
    ],
)
def test_a_duration_is_in_the_unit_that_suits_it(seconds: float, text: str):
    assert duration(seconds) == text
