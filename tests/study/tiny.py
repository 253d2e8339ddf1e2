"""A study of two tiny networks on a folder of 64 images; COMMAND FOLDER runs it, COMMAND FOLDER TRAINING is its worker."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
from PIL import Image

from ditlab.data import DataConfig
from ditlab.recipes import find_recipe
from ditlab.study import STUDIES, Plan, run_study, worker
from ditlab.study.conditioning import report
from ditlab.study.preset import PRESETS, StudyPreset
from ditlab.study.study import Study
from ditlab.study.study_run import Result, StudyRun

HERE = Path(__file__).parent
PATHS = [str(HERE.parent.parent), str(HERE)]
STUDY = f"import sys; sys.path[:0] = {PATHS}; import tiny; tiny.main()"
COMMAND = (sys.executable, "-c", STUDY)
PRESETS["folder"] = ({"M": (1, 16, 2)}, (4,), "M", 4, 256, 4e-3, 48)


def runs(preset: StudyPreset) -> list[StudyRun]:
    recipes = {
        block: replace(preset.recipe, model=replace(preset.default_dit, block=block))
        for block in ("adaln-zero", "adaln")
    }
    return [preset.run(block, {"block": block}, recipe) for block, recipe in recipes.items()]


STUDIES["tiny"] = Study("Tiny", "Does it run?", runs, report)


def tiny_plan(images: Path) -> Plan:
    random = np.random.default_rng(0)
    for index in range(64):
        label = int(index % 4 == 0)  # 48 images of one class, 16 of the other
        path = images / f"class{label}" / f"{index}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(random.integers(128 * label, 128 + 128 * label, (8, 8), np.uint8)).save(path)
    recipe, _ = find_recipe("digits")
    data = DataConfig(source="folder", path=str(images))
    return Plan("tiny", replace(recipe, data=data, train=replace(recipe.train, batch=64), sample_images=4))


def run_tiny(plan: Plan, out: Path, log: Callable[[str], None]) -> list[Result]:
    return run_study(plan, out, 1, log, COMMAND)


def main() -> None:
    if len(sys.argv) == 2:
        run_tiny(Plan.load(Path(sys.argv[1])), Path(sys.argv[1]), print)
    else:
        worker.main()
