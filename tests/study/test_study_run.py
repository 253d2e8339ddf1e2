"""A real study, small: workers that train and measure, a kill, what is skipped, what is refused."""

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

from ditlab.errors import UserError
from ditlab.study import Plan, run_study

SCRIPT = """
import sys
from pathlib import Path
from ditlab.study import Plan, run_study
run_study(Plan.load(Path(sys.argv[1])), Path(sys.argv[1]), 2, lambda line: print(line, flush=True))
"""


def workers(out: Path) -> list[int]:
    """Processes that work for a study."""
    found = []
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = entry.read_bytes().split(b"\0")
        except OSError:
            continue
        if b"ditlab.study" in words and str(out).encode() in words:
            found.append(int(entry.parent.name))
    return found


def within(seconds: float, condition) -> bool:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if condition():
            return True
        time.sleep(0.2)
    return False


@pytest.mark.timeout(900)
def test_a_study_killed_midway_goes_on_names_what_failed_and_reports(small_plan: Plan, tmp_path: Path) -> None:
    out = tmp_path / "study"
    *_, broken = small_plan.cells
    in_the_way = out / "runs" / broken.run
    in_the_way.mkdir(parents=True)
    (in_the_way / "model.json").write_text("{}")  # a model that no recipe made
    small_plan.save(out)
    with subprocess.Popen([sys.executable, "-c", SCRIPT, str(out)], stdout=subprocess.DEVNULL) as study:
        assert within(400, lambda: list((out / "cells").glob("*.json")))
        os.kill(study.pid, signal.SIGKILL)
    assert within(30, lambda: not workers(out))  # they end with the study
    done = {path.name: path.stat().st_mtime_ns for path in (out / "cells").glob("*.json")}
    assert 1 <= len(done) < 4
    said: list[str] = []
    with pytest.raises(UserError, match=rf"1 of {4 - len(done)} runs failed: {broken.run}; their logs are in"):
        run_study(small_plan, out, 2, said.append)
    assert f"4 cells, {len(done)} measured, {4 - len(done)} runs to do" in said[0]
    assert any(f"{broken.run} failed" in line and "not trained there" in line for line in said)
    assert {path.stem for path in (out / "cells").glob("*.json")} == {cell.name for cell in small_plan.cells[:-1]}
    (in_the_way / "model.json").unlink()
    results = run_study(small_plan, out, 2, said.append)
    assert [result.name for result in results] == [cell.name for cell in small_plan.cells]
    for name, when in done.items():
        assert (out / "cells" / name).stat().st_mtime_ns == when  # not measured again
    for result in results:
        assert result.metric == "FD-EffNetLite0@64"
        assert result.training["images"] == 256
        assert result.distance > 100
        assert result.sampling["network_calls"] == pytest.approx(49, abs=1)  # Heun, 25 steps, the last one Euler's
        assert set(result.numbers) >= {"precision", "recall", "KD-EffNetLite0@64"}
    assert (out / "samples.png").exists()
    assert len(json.loads((out / "results.json").read_text())) == 4
    said.clear()
    assert run_study(small_plan, out, 2, said.append) == results
    assert "0 runs to do" in said[0]
    with pytest.raises(UserError, match="measured with other settings"):
        run_study(replace(small_plan, images=384), out, 2, said.append)
    (out / "cells" / f"{broken.name}.json").write_text("{}")
    with pytest.raises(UserError, match="is damaged"):
        run_study(small_plan, out, 2, said.append)
