"""The command ``ditlab evaluate``."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest


@pytest.mark.timeout(600)
def test_a_run_its_archive_and_its_folder_are_measured_alike(
    digits_run: Path, tmp_path: Path, ditlab, pictures
) -> None:
    """Against 300 digits: too few for a Frechet distance, which saves time."""
    run = Path(shutil.copytree(digits_run, tmp_path / "run"))
    recipe = json.loads((run / "recipe.json").read_text())
    recipe["data"]["limit"] = 300
    (run / "recipe.json").write_text(json.dumps(recipe))
    flags = ["--guidance", "1.5", "--guidance-high", "0.9", "--steps", "2", "--seed", "3", "--batch", "128"]
    ended = ditlab("evaluate", run, "--count", "290", "--label-order", "turn", *flags)
    assert (ended.code, ended.err) == (0, "")
    assert "real images: digits: 300 images of 1x8x8" in ended.out
    assert "labels: every class in turn" in ended.out
    assert "FD-EffNetLite0@64 is skipped, the other metrics are measured: 290 samples are too few" in ended.out
    assert "KD-EffNetLite0@64" in ended.out
    assert f"report: {run / 'evaluation' / 'report.md'}" in ended.out
    (row,) = (run / "evaluation" / "results.jsonl").read_text().splitlines()
    first = json.loads(row)
    assert "1.5, all channels, t from 0 to 0.9" in first["how"]["guidance"]
    assert "2 steps" in first["how"]["sampler"]
    made = tmp_path / "made.npz"
    assert ditlab("sample", run, "--count", "290", *flags, "--no-filmstrip", "--out", made).code == 0
    ended = ditlab("evaluate", made, "--recipe", run)
    assert (ended.code, ended.err) == (0, "")
    second = json.loads((tmp_path / "made-evaluation" / "results.jsonl").read_text())
    for name, number in first["numbers"].items():
        assert second["numbers"][name]["value"] == pytest.approx(number["value"], rel=1e-2, abs=1e-3)  # other subsets
    ended = ditlab("evaluate", made, "--reference", pictures(tmp_path, ("real",), 9) / "real", "--size", "8")
    assert (ended.code, ended.err) == (0, "")
    assert "9 images of 3x8x8" in ended.out
    statistics = tmp_path / "statistics.npz"
    np.savez(statistics, mu=np.zeros(2048), sigma=np.eye(2048))
    ended = ditlab("evaluate", made, "--reference", statistics)
    assert ended.code == 2
    assert "contains statistics for FID" in ended.err


def test_mistakes_are_one_line(digits_run: Path, tmp_path: Path, refused) -> None:
    refused(["evaluate"], "SAMPLES")
    refused(["evaluate", tmp_path / "none.npz"], "none.npz")
    refused(["evaluate", digits_run, "--network", "inceptoin"], "'inceptoin'", "inception")
    refused(["evaluate", digits_run, "--reference", "val"], "val", "train")
    refused(["evaluate", digits_run, "--count", "3"], "3 samples are too few", "at least 4")
    refused(["evaluate", digits_run, "--resolution", "32"], "use --size")
    refused(["evaluate", digits_run, "--reference", digits_run], "is the folder of a run", f"--recipe {digits_run}")
    refused(["evaluate", digits_run, "--size", "8", "8", "8"], "size (8, 8, 8)")
    refused(["evaluate", digits_run, "--weights", tmp_path / "no.pth", "--network", "inception"], "no.pth")
    refused(["evaluate", digits_run, "--sampler", "huen"], "huen", "heun")
    refused(["evaluate", "fashoin"], "fashoin", "fashion")
    assert not (digits_run / "evaluation").exists()
