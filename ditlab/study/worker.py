"""One worker process of a study: it trains one network and measures the runs that use it."""

from __future__ import annotations

import os
import statistics
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ditlab.data import open_data
from ditlab.errors import UserError
from ditlab.evaluate import Evaluator, FeatureNetwork, extract_features, feature_network, metric_names
from ditlab.models import cost
from ditlab.pipelines import Pipeline, grid, write_png
from ditlab.recipes import RunContext, train_recipe
from ditlab.recipes.labels import choose_labels
from ditlab.runtime.device import keep_memory, select_device
from ditlab.study.plan import Plan
from ditlab.study.study_run import RESULTS, Result, StudyRun, load_results
from ditlab.train.meter import read_metrics

BATCH = 256
PICTURE = 20  # samples in the picture of a run


def main() -> None:
    """Do one training of a study: ``FOLDER TRAINING [DEVICE]``; ends with the study, whose pipe is the standard input."""
    keep_memory()
    folder, training = Path(sys.argv[1]), sys.argv[2]
    if not sys.stdin.isatty():
        threading.Thread(target=_exit_with_the_study, daemon=True).start()
    try:
        train_and_measure(Plan.load(folder), training, folder, "".join(sys.argv[3:]))
    except UserError as error:
        print(f"ditlab: {error}", flush=True)
        raise SystemExit(2) from None


def _exit_with_the_study() -> None:
    os.read(0, 1)  # the study writes nothing: this returns when its process has ended
    os._exit(4)


def build_evaluator(plan: Plan, device: torch.device) -> tuple[FeatureNetwork, Evaluator]:
    """The feature network of a plan, and the evaluator of its real images; raises UserError if either is missing."""
    dataset = open_data(plan.recipe.data)
    network = feature_network(plan.network, (dataset.shape[1], dataset.shape[2]), plan.weights, device)
    evaluator = Evaluator.of(dataset, network)
    assert evaluator is not None
    return network, evaluator


def train_and_measure(plan: Plan, training: str, folder: Path, device_name: str = "") -> None:
    """Train a network, or resume its training, and measure the runs that use it and have no result yet."""
    runs = [run for run in plan.runs if run.training == training]
    runs = [run for run, result in zip(runs, load_results(runs, folder), strict=True) if result is None]
    device, run_folder = select_device(device_name), folder / "runs" / training
    pipeline = train_recipe(runs[0].recipe, RunContext(run_folder, device, lambda line: print(line, flush=True)))
    network, evaluator = build_evaluator(plan, device)
    floor = {name: vars(number) for name, number in evaluator.floor().items()}
    for run in runs:
        result = _measure(run, pipeline, run_folder, network, evaluator, floor, folder / RESULTS)
        result.save(folder / RESULTS)
        print(f"{run.name}: {result.metric} {result.distance:.4g}", flush=True)


def _measure(
    run: StudyRun, pipeline: Pipeline, run_folder: Path, network: FeatureNetwork, evaluator: Evaluator, floor: dict, out: Path
) -> Result:  # fmt: skip
    rows_computed = 0

    def count(*arguments: Any) -> None:
        nonlocal rows_computed
        rows_computed += len(arguments[-1])  # the output

    hook, start = pipeline.network.register_forward_hook(count), time.perf_counter()
    class_counts = None if evaluator.real is None else np.array(evaluator.real.dataset.info.counts, np.int64)
    labels, _ = choose_labels(pipeline, "proportional", run.count, run.recipe.seed, class_counts)
    batches = list(pipeline.batches(labels, run.recipe.seed, run.count, run.sample, BATCH))
    seconds = time.perf_counter() - start
    hook.remove()
    write_png(grid(batches[0][:PICTURE], PICTURE), out / f"{run.name}.png")
    features = extract_features(network, batches)
    assert features is not None
    numbers = evaluator.measure(features)
    metrics = metric_names(network.distance)
    costs, calls = cost(pipeline.network.config, pipeline.network.spec), rows_computed / run.count
    rows = [row for row in read_metrics(run_folder) if row.get("loss") is not None]
    images, speed = rows[-1]["images"], statistics.median(row["images_per_second"] for row in rows)
    autoencoder = read_metrics(run_folder.with_name(f"{run_folder.name}-autoencoder"))
    psnr = [row["psnr"] for row in autoencoder if "psnr" in row]
    training = {"images": images, "gmacs": 3 * costs.gmacs * images, "images_per_second": speed}
    return Result(
        run.name,
        run.values,
        run.key(),
        metric=metrics["frechet"] if metrics["frechet"] in numbers else metrics["kernel"],
        numbers={name: vars(number) for name, number in numbers.items()},
        floor=floor,
        network={"gmacs": costs.gmacs, "parameters": costs.total_parameters, "tokens": costs.tokens},
        training={**training, "seconds": images / speed, "loss": rows[-1]["loss"]},
        sampling={"seconds": seconds, "network_calls": calls, "gmacs": calls * costs.gmacs},
        more={"psnr": psnr[-1]} if psnr else {},
    )
