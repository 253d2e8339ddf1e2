"""The results of a study whose distances follow a given law, without any training."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cache

import pytest
from specs import image_spec

from ditlab.evaluate.scenes import tasks
from ditlab.models import NetworkSpec, TextConfig, cost
from ditlab.recipes import Recipe, find_recipe
from ditlab.study import STUDIES, Plan
from ditlab.study.preset import preset
from ditlab.study.study_run import Result, StudyRun
from ditlab.study.text import search

METRIC = "FD-EffNetLite0@64"
RATE = 2e-3  # of every arm of the study of text
cached_cost = cache(cost)  # counting a network takes tenths of a second
Law = Callable[[StudyRun, float], float]  # of a run and its GMACs


def plan_of(study: str) -> Plan:
    """A study on digits; that of text on scenes, with its learning rates chosen."""
    if study != "text":
        return Plan(study, find_recipe("digits")[0])
    recipe, _ = find_recipe("scenes")
    recipe = replace(recipe, data=replace(recipe.data, limit=300))
    return Plan(study, recipe, rates=dict.fromkeys(_arms(recipe), RATE))


@cache
def _arms(recipe: Recipe) -> tuple[str, ...]:
    """The arms of the study of text, each of which has a learning rate."""
    return tuple(run.name.partition("-lr")[0] for run in search(preset(recipe)))


def results_by_law(study: str, law: Law, seeds: int = 1) -> list[Result]:
    """Results of all runs of a study, their metric computed by ``law``."""
    results, spec = [], image_spec(1, 8, 8, 10)
    if study == "text":
        condition = TextConfig(features=0, vocabulary=40, frozen=False, tokens=16, null=True)
        spec = NetworkSpec(image_spec(4, 8, 8, 0).latent, (condition,), False)
    for run in replace(plan_of(study), seeds=seeds).runs:
        costs = cached_cost(run.recipe.model, spec)
        images, value = run.recipe.train.images, law(run, costs.gmacs)
        numbers: dict[str, dict[str, float | None]] = {METRIC: {"value": value, "spread": 1.0}}
        numbers |= {"precision": {"value": 0.7, "spread": 0.01}, "recall": {"value": 0.6, "spread": 0.01}}
        if study == "text":
            loss = 0.4 + abs(run.values["lr"] - RATE)
            values = {"accuracy": value, "held out": value - 10, **dict.fromkeys(tasks(), value), "held-out loss": loss}
            values |= {"other caption": 0.2, "variety": 0.9}
            numbers = {name: {"value": each, "spread": None} for name, each in values.items()}
        training = {"images": images, "gmacs": 3 * costs.gmacs * images, "images_per_second": 1000.0}
        training |= {"seconds": images / 1000, "loss": 0.5}
        network = {"gmacs": costs.gmacs, "parameters": costs.total_parameters, "tokens": costs.tokens}
        sampling = {"seconds": 1.0, "network_calls": run.sample.steps, "gmacs": run.sample.steps * costs.gmacs}
        more = {"psnr": 20.0 + run.values["channels"]} if run.values.get("channels") else {}
        floor = {METRIC: {"value": 92.7, "spread": None}}
        metric = next(iter(numbers))
        results.append(
            Result(run.name, run.values, run.key(), metric, numbers, floor, network, training, sampling, more)
        )
    return results


@pytest.fixture
def plan() -> Callable[[str], Plan]:
    return plan_of


assert set(STUDIES) == {"scaling", "conditioning", "unet", "sampling", "ablation", "autoencoder", "text"}
