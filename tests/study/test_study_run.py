"""A tiny real study: worker processes that train and measure, a kill, skipped results, refused settings."""

from __future__ import annotations

import json
import shutil
import subprocess
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from forked import Forked
from tiny import COMMAND, STUDY, run_tiny, tiny_plan
from torch.nn.functional import adaptive_avg_pool2d

from ditlab.errors import UserError
from ditlab.evaluate import FeatureNetwork
from ditlab.pipelines import Pipeline
from ditlab.study import Plan, distances, worker
from ditlab.study import run as study_run
from ditlab.study.run import WORKER, choose_metric
from ditlab.study.study_run import load_results


def workers(out: Path) -> list[int]:
    """Processes that work for a study."""
    found = []
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = entry.read_bytes().split(b"\0")
        except OSError:
            continue
        if COMMAND[-1].encode() in words and str(out).encode() in words[:-2]:
            found.append(int(entry.parent.name))
    return found


def within(seconds: float, condition) -> bool:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if condition():
            return True
        time.sleep(0.2)
    return False


@pytest.fixture
def plan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Plan:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tiny_plan(tmp_path / "images")


def test_a_killed_study_resumes_names_the_failed_training_and_reports(plan: Plan, tmp_path: Path) -> None:
    out, lines = tmp_path / "study", []
    first, broken = sorted(plan.runs, key=lambda run: run.name, reverse=True)  # adaLN-Zero costs more and runs first
    plan.save(out)
    study = Forked(out, script=STUDY)
    try:
        ready = lambda: (out / "results" / f"{first.name}.json").exists() and len(workers(out)) == 1  # noqa: E731
        assert within(250, lambda: study.poll() is not None or ready())
        assert study.poll() is None  # the second training has not ended
    finally:
        study.kill()
    assert within(30, lambda: not workers(out))  # they end with the study
    modified = (out / "results" / f"{first.name}.json").stat().st_mtime_ns
    assert [path.stem for path in (out / "results").glob("*.json")] == [first.name]
    occupied = out / "runs" / broken.training
    shutil.rmtree(occupied, ignore_errors=True)
    occupied.mkdir()
    (occupied / "model.json").write_text("{}")  # a model without a recipe
    with pytest.raises(UserError, match=rf"1 of 1 trainings failed: {broken.training}; logs: "):
        run_tiny(plan, out, lines.append)
    assert "1 of 2 runs measured, 1 trainings to do" in lines[0]
    assert lines[1] == (
        "metric: KD-EffNetLite0@64; 64 real images are too few for FD-EffNetLite0@64, which needs 1,281"
    )
    assert any(f"{broken.training} failed" in line and str(occupied) in line for line in lines)
    assert [path.stem for path in (out / "results").glob("*.json")] == [first.name]
    (occupied / "model.json").unlink()
    results = run_tiny(plan, out, lines.append)
    assert [result.name for result in results] == [run.name for run in plan.runs]
    assert (out / "results" / f"{first.name}.json").stat().st_mtime_ns == modified  # not measured again
    for result in results:
        assert result.metric == "KD-EffNetLite0@64"
        assert result.training["images"] == 256
        assert result.distance > 0
        assert result.sampling["network_calls"] == pytest.approx(49, abs=1)  # Heun, 25 steps; the last is an Euler step
        assert set(result.numbers) >= {"precision", "recall"}
    assert (out / "samples.png").exists()
    assert len(json.loads((out / "results.json").read_text())) == 2
    lines.clear()
    assert run_tiny(plan, out, lines.append) == results
    assert "0 trainings to do" in lines[0]
    with pytest.raises(UserError, match="measured with other settings"):
        run_tiny(replace(plan, images=384), out, lines.append)
    (out / "results" / f"{broken.name}.json").write_text("{}")
    with pytest.raises(UserError, match="is damaged"):
        run_tiny(plan, out, lines.append)


class Patches(FeatureNetwork):
    """The mean grey of each quarter of an image: features of width 4, enough for a Frechet distance of 48 samples."""

    name, distance, width, side = "patches", "FD-Patches", 4, 8

    def __init__(self) -> None:
        super().__init__()
        self.scale = torch.nn.Parameter(torch.ones(()))

    def forward(self, pixels: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        return self.scale * adaptive_avg_pool2d(pixels, 2)[:, 0].flatten(1), None, None


def test_a_worker_compares_by_frechet_distance_if_the_images_are_enough(
    plan: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(distances, "feature_network", lambda *arguments: Patches())
    out, run, sampled = tmp_path / "study", plan.runs[0], []
    batches = Pipeline.batches

    def recorded(model: Pipeline, labels: Any, *arguments: Any, **settings: Any) -> Iterator[np.ndarray]:
        sampled.append(labels)
        return batches(model, labels, *arguments, **settings)

    monkeypatch.setattr(Pipeline, "batches", recorded)
    worker.train_and_measure(plan, run.training, out)
    assert np.bincount(sampled[-1]).tolist() == [36, 12]  # of 48, in the proportions of the training images
    (result,) = [result for result in load_results(plan.runs, out) if result is not None]
    assert result.metric == "FD-Patches"
    assert result.distance > 100
    assert set(result.numbers) >= {"precision", "recall", "KD-Patches"}
    assert result.floor["FD-Patches"]["value"] is not None
    assert (out / "results" / f"{run.name}.png").exists()


@pytest.mark.parametrize(
    ("width", "count", "outcome"),
    [
        (4, 5, "FD-Patches"),
        (4, 4, "--count: 4 samples are too few for FD-Patches; a covariance of 4 features needs at least 5"),
        (64, 4, "KD-Patches; 64 real images are too few for FD-Patches, which needs 65"),
        (64, 3, "--count: 3 samples are too few to be measured; at least 4 needed"),
    ],
)
def test_too_few_samples_are_known_before_any_training(
    plan: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, width: int, count: int, outcome: str
) -> None:
    network = Patches()
    network.width = width
    monkeypatch.setattr(study_run, "feature_network", lambda *arguments: network)
    plan, lines = replace(plan, count=count), []
    if not outcome.startswith("--count"):
        assert choose_metric(plan) == outcome
        return
    with pytest.raises(UserError) as refused:
        run_tiny(plan, tmp_path / "study", lines.append)
    assert str(refused.value) == outcome
    assert not list((tmp_path / "study").rglob("*.*"))
    assert not (tmp_path / "cache").exists()  # not even features of the real images were computed


def test_the_worker_command_refuses_a_folder_without_a_plan(tmp_path: Path) -> None:
    root = Path(__file__).parent.parent.parent
    command = [*WORKER, str(tmp_path), "M-seed0"]
    with subprocess.Popen(command, cwd=root, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.wait(200) == 2
        assert process.stdout is not None
        assert "is not the plan of a study" in process.stdout.read()
