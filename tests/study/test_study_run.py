"""A tiny real study: worker processes that train and measure, a kill, skipped results, refused settings."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import tiny
from tiny import run_tiny, tiny_plan

from ditlab.errors import UserError


def workers(out: Path) -> list[int]:
    """Processes that work for a study."""
    found = []
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = entry.read_bytes().split(b"\0")
        except OSError:
            continue
        if tiny.__file__.encode() in words and str(out).encode() in words[:-2]:
            found.append(int(entry.parent.name))
    return found


def within(seconds: float, condition) -> bool:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if condition():
            return True
        time.sleep(0.2)
    return False


def test_a_killed_study_resumes_names_the_failed_training_and_reports(tmp_path: Path) -> None:
    out, plan, lines = tmp_path / "study", tiny_plan(), []
    *_, broken = plan.runs
    occupied = out / "runs" / broken.training
    occupied.mkdir(parents=True)
    (occupied / "model.json").write_text("{}")  # a model without a recipe
    with subprocess.Popen([sys.executable, tiny.__file__, str(out)], stdout=subprocess.DEVNULL) as study:
        assert within(300, lambda: any((out / "results").glob("*.json")) and len(workers(out)) == 1)
        os.kill(study.pid, signal.SIGKILL)
    assert within(30, lambda: not workers(out))  # they end with the study
    done = {path.name: path.stat().st_mtime_ns for path in (out / "results").glob("*.json")}
    assert 1 <= len(done) < 3
    with pytest.raises(UserError, match=rf"1 of {3 - len(done)} trainings failed: {broken.training}; logs: "):
        run_tiny(plan, out, lines.append)
    assert f"{len(done)} of 3 runs measured, {3 - len(done)} trainings to do" in lines[0]
    assert any(f"{broken.training} failed" in line and str(out / "runs") in line for line in lines)
    assert {path.stem for path in (out / "results").glob("*.json")} == {run.name for run in plan.runs[:-1]}
    (occupied / "model.json").unlink()
    results = run_tiny(plan, out, lines.append)
    assert [result.name for result in results] == [run.name for run in plan.runs]
    for name, modified in done.items():
        assert (out / "results" / name).stat().st_mtime_ns == modified  # not measured again
    for result in results:
        assert result.metric == "FD-EffNetLite0@64"
        assert result.training["images"] == 256
        assert result.distance > 100
        assert result.sampling["network_calls"] == pytest.approx(49, abs=1)  # Heun, 25 steps; the last is an Euler step
        assert set(result.numbers) >= {"precision", "recall", "KD-EffNetLite0@64"}
    assert (out / "samples.png").exists()
    assert len(json.loads((out / "results.json").read_text())) == 3
    lines.clear()
    assert run_tiny(plan, out, lines.append) == results
    assert "0 trainings to do" in lines[0]
    with pytest.raises(UserError, match="measured with other settings"):
        run_tiny(replace(plan, images=384), out, lines.append)
    (out / "results" / f"{broken.name}.json").write_text("{}")
    with pytest.raises(UserError, match="is damaged"):
        run_tiny(plan, out, lines.append)
