"""One worker of a study: trains one run and measures the cells that need it."""

from __future__ import annotations

import os
import statistics
import sys
import threading
import time
from pathlib import Path
from typing import Any

import torch

from ditlab.data import open_data
from ditlab.errors import UserError
from ditlab.evaluate import Evaluator, FeatureNetwork, extract_features, feature_network
from ditlab.evaluate.measure import names
from ditlab.models import cost
from ditlab.pipelines import Pipeline, generate, grid, write_png
from ditlab.recipes import RunContext, train_recipe
from ditlab.runtime.device import default_device, keep_memory
from ditlab.study.plan import Plan
from ditlab.study.study_run import Result, StudyRun, finished
from ditlab.train.meter import read_metrics

BATCH = 256
DRAWN = 20  # images of a cell's picture


def main() -> None:
    """Do one run of a study: ``FOLDER RUN``; ends when the study does, whose pipe is the standard input."""
    keep_memory()
    folder, run = Path(sys.argv[1]), sys.argv[2]
    if not sys.stdin.isatty():
        threading.Thread(target=_end_with_the_study, daemon=True).start()
    try:
        measure_run(Plan.load(folder), run, folder)
    except UserError as error:
        print(f"ditlab: {error}", flush=True)
        raise SystemExit(2) from None


def _end_with_the_study() -> None:
    os.read(0, 1)  # nothing ever comes: it returns when the study's process is gone
    os._exit(4)


def build_evaluator(plan: Plan, device: torch.device) -> tuple[FeatureNetwork, Evaluator]:
    """The feature network of a plan and the real images it has seen.

    Raises:
        UserError: the images or the weights are not to be had.
    """
    dataset = open_data(plan.form.recipe.data)
    network = feature_network(plan.network, (dataset.shape[1], dataset.shape[2]), plan.weights, device)
    evaluator = Evaluator.of(dataset, network)
    assert evaluator is not None
    return network, evaluator


def measure_run(plan: Plan, run: str, folder: Path) -> None:
    """Train a run, or go on with it, and measure those of its cells that are not yet.

    Raises:
        UserError: settings, data or disk are in the way.
    """
    cells = [cell for cell in plan.cells if cell.run == run and finished(cell, folder / "cells") is None]
    device, place = default_device(), folder / "runs" / run
    model = train_recipe(cells[0].recipe, RunContext(place, device, lambda line: print(line, flush=True)))
    network, evaluator = build_evaluator(plan, device)
    floor = evaluator.floor()
    for cell in cells:
        result = _measure(cell, model, place, network, evaluator, floor, folder)
        result.save(folder / "cells")
        print(f"{cell.name}: {result.metric} {result.distance:.4g}", flush=True)


def _measure(
    cell: StudyRun,
    model: Pipeline,
    place: Path,
    network: FeatureNetwork,
    evaluator: Evaluator,
    floor: dict,
    folder: Path,
) -> Result:
    calls = 0

    def count(*seen: Any) -> None:
        nonlocal calls
        calls += len(seen[-1])  # the output

    hook, began = model.network.register_forward_hook(count), time.perf_counter()
    batches = list(generate(model, None, cell.recipe.seed, cell.count, cell.sample, BATCH))
    seconds = time.perf_counter() - began
    hook.remove()
    write_png(grid(batches[0][:DRAWN], DRAWN), folder / "cells" / f"{cell.name}.png")
    seen = extract_features(network, batches)
    assert seen is not None
    numbers = evaluator.measure(seen)
    called = names(network.distance)
    counted = cost(model.network.config, model.network.input)
    rows = [row for row in read_metrics(place) if row.get("loss") is not None]
    images, speed = rows[-1]["images"], statistics.median(row["images_per_second"] for row in rows)
    psnr = [row["psnr"] for row in read_metrics(place.with_name(f"{place.name}-autoencoder")) if "psnr" in row]
    return Result(
        cell.name,
        cell.values,
        cell.key(),
        called["frechet"] if called["frechet"] in numbers else called["kernel"],
        {name: vars(number) for name, number in numbers.items()},
        {name: vars(number) for name, number in floor.items()},
        {"gmacs": counted.gmacs, "parameters": counted.total_parameters, "tokens": counted.tokens},
        {
            "images": images,
            "gmacs": 3 * counted.gmacs * images,
            "images_per_second": speed,
            "seconds": images / speed,
            "loss": rows[-1]["loss"],
        },
        {
            "seconds": seconds,
            "network_calls": calls / cell.count,
            "gmacs": calls / cell.count * counted.gmacs,
        },
        {"psnr": psnr[-1]} if psnr else {},
    )
