"""The runs of a study: what each one trains and samples, and its measured result."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from ditlab.errors import UserError
from ditlab.pipelines import SampleConfig
from ditlab.recipes import Recipe
from ditlab.runtime import files

RESULTS, BEFORE = "results", "cells"  # the folder of the results; its name before version 0.2


@dataclass(frozen=True)
class StudyRun:
    """One setting of a study: a trained network, sampled and measured."""

    name: str  # of the result, unique in the study
    training: str  # name of the run folder; runs with equal recipes share one training
    recipe: Recipe  # of the training
    sample: SampleConfig  # sampler, steps and guidance
    count: int  # number of samples to measure
    values: dict[str, Any]  # the varied settings, by name

    def key(self) -> dict[str, Any]:
        """Everything the result depends on, as JSON types."""
        sample = json.loads(json.dumps(asdict(self.sample)))
        return {"recipe": json.loads(self.recipe.to_json()), "sample": sample, "count": self.count}


@dataclass(frozen=True)
class Result:
    """The measurements of one run."""

    name: str  # of the run, as values and key
    values: dict[str, Any]
    key: dict[str, Any]
    metric: str  # name of the distance by which the study compares its runs
    numbers: dict[str, dict[str, float | None]]  # each measured metric, by name: value and spread
    floor: dict[str, dict[str, float | None]]  # the same metrics of real images against real images
    network: dict[str, float]  # gmacs, parameters and tokens
    training: dict[str, float]  # images, gmacs in total, seconds, images_per_second, loss
    sampling: dict[str, float]  # seconds, network_calls per image, gmacs per image
    more: dict[str, float] = field(default_factory=dict)  # metrics of some studies only, such as the autoencoder's psnr

    @property
    def distance(self) -> float:
        """The value of the study's metric."""
        return self.number(self.metric)

    def number(self, prefix: str) -> float:
        """The value of the first metric whose name starts with ``prefix``."""
        value = next(number["value"] for name, number in self.numbers.items() if name.startswith(prefix))
        assert value is not None
        return value

    def save(self, folder: Path) -> None:
        """Write ``NAME.json``; raises UserError if the folder is not writable."""
        files.write_file(folder / f"{self.name}.json", json.dumps(asdict(self), indent=2) + "\n")


def finished(run: StudyRun, folder: Path) -> Result | None:
    """The stored result of a run, None if not measured yet; raises UserError if it is damaged or of other settings."""
    path = folder / f"{run.name}.json"
    if not path.exists():
        return None
    try:
        result = Result(**json.loads(path.read_text()))
        recipe = Recipe.from_json(json.dumps(result.key["recipe"]), str(path))  # also reads fields by their older names
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise UserError(f"{path} is damaged ({error}); delete it to measure the run again") from error
    key = {**result.key, "recipe": json.loads(recipe.to_json())}
    if key != run.key():
        raise UserError(
            f"{path} was measured with other settings ({_difference(key, run.key())}); choose another --out"
        )
    return replace(result, key=key, values=run.values)


def load_results(runs: Sequence[StudyRun], out: Path) -> list[Result | None]:
    """``finished`` for each run in a study's folder, of this version or an earlier one."""
    if (out / BEFORE).is_dir() and not (out / RESULTS).exists():
        (out / BEFORE).rename(out / RESULTS)
    return [finished(run, out / RESULTS) for run in runs]


def _difference(stored: Any, planned: Any, name: str = "") -> str:
    """The first setting that differs."""
    if isinstance(stored, dict) and isinstance(planned, dict):
        for key in (*planned, *(key for key in stored if key not in planned)):
            if stored.get(key) != planned.get(key):
                return _difference(stored.get(key), planned.get(key), f"{name}.{key}" if name else key)
    return f"{name} is {stored} in the file and {planned} in this study"
