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
    """One setting of a study: a trained network, sampled and measured.

    Attributes:
        name: of the result, unique in the study.
        training: name of the run folder; runs with equal recipes share one training.
        recipe: of the training.
        sample: sampler, steps and guidance.
        count: number of samples to measure.
        values: the varied settings, by name.
    """

    name: str
    training: str
    recipe: Recipe
    sample: SampleConfig
    count: int
    values: dict[str, Any]

    def key(self) -> dict[str, Any]:
        """Everything the result depends on, as JSON types."""
        sample = json.loads(json.dumps(asdict(self.sample)))
        return {"recipe": json.loads(self.recipe.to_json()), "sample": sample, "count": self.count}


@dataclass(frozen=True)
class Result:
    """The measurements of one run.

    Attributes:
        name: of the run.
        values: the varied settings, by name.
        key: everything the result depends on.
        metric: name of the distance by which the study compares its runs.
        numbers: each measured metric, by name: value and spread.
        floor: the same metrics of real images against real images.
        network: gmacs, parameters and tokens.
        training: images, gmacs in total, seconds, images_per_second, loss.
        sampling: seconds, network_calls per image, gmacs per image.
        more: metrics of some studies only, such as the autoencoder's psnr.
    """

    name: str
    values: dict[str, Any]
    key: dict[str, Any]
    metric: str
    numbers: dict[str, dict[str, float | None]]
    floor: dict[str, dict[str, float | None]]
    network: dict[str, float]
    training: dict[str, float]
    sampling: dict[str, float]
    more: dict[str, float] = field(default_factory=dict)

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
        """Write ``NAME.json``.

        Raises:
            UserError: the disk is full or the folder is not writable.
        """
        files.write_file(folder / f"{self.name}.json", json.dumps(asdict(self), indent=2) + "\n")


def finished(run: StudyRun, folder: Path) -> Result | None:
    """The stored result of a run; None if it is not measured yet.

    Raises:
        UserError: the file is damaged, or its settings differ from the run's.
    """
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
    """The stored result of each run in a study's folder; reads folders written before version 0.2 too.

    Raises:
        UserError: a result is damaged, or its settings differ from the run's.
    """
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
