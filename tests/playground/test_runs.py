"""Runs and studies, read from complete and damaged files."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
from PIL import Image

from ditlab.playground.runs import Run, evaluations, find_runs, find_studies, sample_images, study_report
from ditlab.runtime import files


def test_a_folder_without_runs_has_none(tmp_path: Path):
    assert find_runs(tmp_path) == {}
    assert find_runs(tmp_path / "missing") == {}
    assert find_studies(tmp_path / "missing") == {}


def test_runs_are_found_at_any_depth_the_newest_first(runs: Path):
    shutil.copytree(runs / "digits", runs / "deep" / "er" / "again")
    (runs / "deep" / "er" / "again" / "metrics.jsonl").touch()
    found = find_runs(runs)
    assert list(found) == ["deep/er/again", "digits"]
    run = found["digits"]
    assert (run.state, run.images, run.total_images) == ("finished", 640, 640)
    assert run.progress == "20 of 20 steps"
    assert [row["images"] for row in run.rows] == [160, 320, 480, 640]
    assert list(find_runs(runs / "digits")) == ["digits"]  # the run itself


def test_a_training_run_differs_from_a_stopped_one(runs: Path):
    (runs / "digits" / "report.md").unlink()
    assert find_runs(runs)["digits"].state == "stopped"
    with files.locked(runs / "digits", "the run"):
        assert find_runs(runs)["digits"].state == "training"
    (runs / "digits" / ".lock").touch()  # as a killed process leaves it
    assert find_runs(runs)["digits"].state == "stopped"


def test_progress_is_in_whole_steps_and_a_resumed_run_is_not_finished(runs: Path):
    folder = runs / "digits"
    recipe = json.loads((folder / "recipe.json").read_text())

    def change(**values: int) -> Run:
        (folder / "recipe.json").write_text(json.dumps({**recipe, "train": {**recipe["train"], **values}}))
        return find_runs(runs)["digits"]

    run = change(images=659)  # the last 19 images are no whole batch of 32
    assert (run.state, run.total_images, run.progress) == ("finished", 640, "20 of 20 steps")
    run = change(images=1280)  # it has the report of its first end
    assert (run.state, run.total_images, run.progress) == ("stopped", 1280, "20 of 40 steps")
    with files.locked(folder, "the run"):
        assert find_runs(runs)["digits"].state == "training"
    with (folder / "metrics.jsonl").open("a") as file:
        file.write('{"images": 704, "images_per_second": 9.0}\n')  # a row of samples, without a loss
    run = find_runs(runs)["digits"]
    assert (run.images, run.progress, len(run.rows)) == (704, "22 of 40 steps", 4)
    assert change(batch=0).progress == "704 images"


def test_damaged_files_are_skipped(runs: Path):
    folder = runs / "digits"
    with (folder / "metrics.jsonl").open("a") as file:
        file.write('[1]\n{"images": "many", "loss": 1}\n{"loss": 2}\n{"images": 700, "lo')
    (folder / "recipe.json").write_text("{")
    (folder / "samples" / "000000000700.png").write_bytes(b"\x89PNG and no more")
    (folder / "evaluation").mkdir()
    (folder / "evaluation" / "results.jsonl").write_text(
        '{"numbers": {}, "how": {}}\n{"numbers": 3, "how": []}\n3\n{"num'
    )
    run = find_runs(runs)["digits"]
    assert (run.images, run.total_images) == (640, 0)
    assert [words for _, words in sample_images(run)] == ["640 images"]
    assert evaluations(run) == [{"numbers": {}, "how": {}}]
    (folder / "metrics.jsonl").write_bytes(b"\xff\xfe")
    assert find_runs(runs) == {}


def test_many_samples_are_thinned_out_evenly(runs: Path):
    samples = runs / "digits" / "samples"
    for k in range(100):
        Image.fromarray(np.full((4, 4), k, np.uint8)).save(samples / f"{k:012d}.png")
    words = [words for _, words in sample_images(find_runs(runs)["digits"])]
    assert len(words) == 24
    assert words[0] == "0 images"
    assert words[-1] == "640 images"


def test_a_study_is_read_with_its_figures(tmp_path: Path):
    folder = tmp_path / "study"
    folder.mkdir()
    (folder / "plan.json").write_text(json.dumps({}))
    Image.new("RGB", (3, 3)).save(folder / "line.png")
    (folder / "report.md").write_text(
        "# Title\n\n![a line](line.png)\n\n![gone](gone.png)\n\n![no](../../x.png)\n\nwords\n"
    )
    assert find_studies(tmp_path) == {"study": folder}
    text, figures = study_report(folder)
    assert text == "# Title\n\nwords\n"
    assert [words for _, words in figures] == ["a line"]
