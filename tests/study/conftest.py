"""A study's results as they would come out if a law held, without training anything."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from ditlab.models import NetworkInput, cost
from ditlab.recipes import find_recipe
from ditlab.study import STUDIES, Plan
from ditlab.study.study_run import Result, StudyRun

METRIC = "FD-EffNetLite0@64"
Law = Callable[[StudyRun, float], float]  # of a cell and its GMACs


def lawful(study: str, law: Law, seeds: int = 1) -> list[Result]:
    """Results of all cells of a study on digits, their distances by ``law``."""
    results = []
    for cell in Plan(study, find_recipe("digits")[0], seeds=seeds).cells:
        counted = cost(cell.recipe.model, NetworkInput(1, 8, 8, 10))
        images = cell.recipe.train.images
        numbers: dict[str, dict[str, float | None]] = {METRIC: {"value": law(cell, counted.gmacs), "spread": 1.0}}
        numbers |= {"precision": {"value": 0.7, "spread": 0.01}, "recall": {"value": 0.6, "spread": 0.01}}
        training = {"images": images, "gmacs": 3 * counted.gmacs * images, "images_per_second": 1000.0}
        training |= {"seconds": images / 1000, "loss": 0.5}
        network = {"gmacs": counted.gmacs, "parameters": counted.total_parameters, "tokens": counted.tokens}
        sampling = {"seconds": 1.0, "network_calls": cell.sample.steps, "gmacs": cell.sample.steps * counted.gmacs}
        more = {"psnr": 20.0 + cell.values["channels"]} if cell.values.get("channels") else {}
        floor = {METRIC: {"value": 92.7, "spread": None}}
        results.append(
            Result(cell.name, cell.values, cell.key(), METRIC, numbers, floor, network, training, sampling, more)
        )
    return results


@pytest.fixture
def plan() -> Callable[[str], Plan]:
    return lambda study: Plan(study, find_recipe("digits")[0])


@pytest.fixture
def small_plan() -> Plan:
    """Four cells that train for two steps."""
    recipe, _ = find_recipe("digits")
    recipe = replace(recipe, train=replace(recipe.train, batch=128))
    return Plan("conditioning", recipe, seeds=1, images=256, count=1_300)


assert set(STUDIES) == {"scaling", "conditioning", "unet", "sampling", "ladder", "autoencoder"}
