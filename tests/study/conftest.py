"""The results of a study whose distances follow a given law, without any training."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import pytest
from specs import image_spec

from ditlab.models import cost
from ditlab.recipes import find_recipe
from ditlab.study import STUDIES, Plan
from ditlab.study.study_run import Result, StudyRun

METRIC = "FD-EffNetLite0@64"
cached_cost = cache(cost)  # counting a network takes tenths of a second
Law = Callable[[StudyRun, float], float]  # of a run and its GMACs


def results_by_law(study: str, law: Law, seeds: int = 1) -> list[Result]:
    """Results of all runs of a study on digits, their distances computed by ``law``."""
    results = []
    for run in Plan(study, find_recipe("digits")[0], seeds=seeds).runs:
        costs = cached_cost(run.recipe.model, image_spec(1, 8, 8, 10))
        images = run.recipe.train.images
        numbers: dict[str, dict[str, float | None]] = {METRIC: {"value": law(run, costs.gmacs), "spread": 1.0}}
        numbers |= {"precision": {"value": 0.7, "spread": 0.01}, "recall": {"value": 0.6, "spread": 0.01}}
        training = {"images": images, "gmacs": 3 * costs.gmacs * images, "images_per_second": 1000.0}
        training |= {"seconds": images / 1000, "loss": 0.5}
        network = {"gmacs": costs.gmacs, "parameters": costs.total_parameters, "tokens": costs.tokens}
        sampling = {"seconds": 1.0, "network_calls": run.sample.steps, "gmacs": run.sample.steps * costs.gmacs}
        more = {"psnr": 20.0 + run.values["channels"]} if run.values.get("channels") else {}
        floor = {METRIC: {"value": 92.7, "spread": None}}
        results.append(
            Result(run.name, run.values, run.key(), METRIC, numbers, floor, network, training, sampling, more)
        )
    return results


@pytest.fixture
def plan() -> Callable[[str], Plan]:
    return lambda study: Plan(study, find_recipe("digits")[0])


assert set(STUDIES) == {"scaling", "conditioning", "unet", "sampling", "ablation", "autoencoder"}
