"""How the runs of a study on images with classes are measured: by distances of samples to the training images."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from ditlab.data import open_data
from ditlab.evaluate import Evaluator, FeatureNetwork, extract_features, feature_network, metric_names
from ditlab.pipelines import Pipeline, grid, write_png
from ditlab.recipes.labels import choose_labels
from ditlab.study.plan import Plan
from ditlab.study.study_run import Result, StudyRun, count_calls, result_of
from ditlab.train.meter import read_metrics

BATCH = 256
PICTURE = 20  # samples in the picture of a run
Measurement = Callable[
    [StudyRun, Pipeline, Path, Path], Result
]  # of a run, its model and folder; the folder of results


def build_evaluator(plan: Plan, device: torch.device) -> tuple[FeatureNetwork, Evaluator]:
    """The feature network of a plan, and the evaluator of its real images; raises UserError if either is missing."""
    dataset = open_data(plan.recipe.data)
    network = feature_network(plan.network, (dataset.shape[1], dataset.shape[2]), plan.weights, device)
    evaluator = Evaluator.of(dataset, network)
    assert evaluator is not None
    return network, evaluator


def measurement(plan: Plan, device: torch.device) -> Measurement:
    """What measures the runs of a plan."""
    network, evaluator = build_evaluator(plan, device)
    floor = {name: vars(number) for name, number in evaluator.floor().items()}
    metrics = metric_names(network.distance)

    def measure(run: StudyRun, pipeline: Pipeline, run_folder: Path, out: Path) -> Result:
        class_counts = None if evaluator.real is None else np.array(evaluator.real.dataset.info.counts, np.int64)
        labels, _ = choose_labels(pipeline, "proportional", run.count, run.recipe.seed, class_counts)
        start = time.perf_counter()
        with count_calls(pipeline) as calls:
            batches = list(pipeline.batches(labels, run.recipe.seed, run.count, run.sample, BATCH))
        seconds = time.perf_counter() - start
        write_png(grid(batches[0][:PICTURE], PICTURE), out / f"{run.name}.png")
        features = extract_features(network, batches)
        assert features is not None
        numbers = {name: vars(number) for name, number in evaluator.measure(features).items()}
        metric = metrics["frechet"] if metrics["frechet"] in numbers else metrics["kernel"]
        autoencoder = read_metrics(run_folder.with_name(f"{run_folder.name}-autoencoder"))
        psnr = [row["psnr"] for row in autoencoder if "psnr" in row]
        more = {"psnr": psnr[-1]} if psnr else {}
        sampling = {"seconds": seconds, "network_calls": sum(calls) / run.count}
        return result_of(run, pipeline, run_folder, metric, numbers, floor, sampling, more)

    return measure
