"""A study of three tiny networks on digits: ``tiny.py FOLDER`` runs it, ``tiny.py FOLDER TRAINING`` is its worker."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from ditlab.recipes import find_recipe
from ditlab.study import STUDIES, Plan, run_study, worker
from ditlab.study.conditioning import report
from ditlab.study.preset import PRESETS
from ditlab.study.study import Study
from ditlab.study.study_run import Result

BLOCKS = ("adaln-zero", "adaln", "in-context")
PRESETS["digits"] = ({"M": (1, 16, 2)}, (4,), "M", 4, 256, 4e-3, 1_300)


def runs(preset, seeds: int):
    for block in BLOCKS:
        recipe = replace(preset.recipe, model=replace(preset.default_dit, block=block))
        yield preset.run(block, {"block": block, "seed": 0}, recipe)


STUDIES["tiny"] = Study("Tiny", "Does it run?", lambda preset, seeds: list(runs(preset, seeds)), report)


def tiny_plan() -> Plan:
    recipe, _ = find_recipe("digits")
    return Plan("tiny", replace(recipe, train=replace(recipe.train, batch=128)))


def run_tiny(plan: Plan, out: Path, log: Callable[[str], None]) -> list[Result]:
    return run_study(plan, out, 1, log, (sys.executable, __file__))


if __name__ == "__main__":
    if len(sys.argv) == 2:
        run_tiny(tiny_plan(), Path(sys.argv[1]), print)
    else:
        worker.main()
