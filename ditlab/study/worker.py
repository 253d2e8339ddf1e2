"""One worker process of a study: it trains one network and measures the runs that use it."""

from __future__ import annotations

import os
import sys
import threading
from dataclasses import replace
from pathlib import Path

from ditlab.errors import UserError
from ditlab.recipes import Recipe, RunContext, train_recipe
from ditlab.runtime.device import keep_memory, select_device
from ditlab.study import accuracy, distances
from ditlab.study.plan import STUDIES, Plan
from ditlab.study.study_run import RESULTS, load_results

SHARED = "shared"  # in a study's folder: shared-autoencoder and shared-latents, of images with captions


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


def train_and_measure(plan: Plan, training: str, folder: Path, device_name: str = "") -> None:
    """Train a network, or resume its training, and measure the runs that use it and have no result yet."""
    runs = [run for run in plan.runs if run.training == training]
    runs = [run for run, result in zip(runs, load_results(runs, folder), strict=True) if result is None]
    device, run_folder, prompts = select_device(device_name), folder / "runs" / training, STUDIES[plan.study].prompts
    recipe = _with_shared_latents(runs[0].recipe, folder) if prompts else runs[0].recipe
    pipeline = train_recipe(recipe, RunContext(run_folder, device, lambda line: print(line, flush=True)))
    measure = accuracy.measurement(plan) if prompts else distances.measurement(plan, device)
    for run in runs:
        result = measure(run, pipeline, run_folder, folder / RESULTS)
        result.save(folder / RESULTS)
        print(f"{run.name}: {result.metric} {result.distance:.4g}", flush=True)


def _with_shared_latents(recipe: Recipe, folder: Path) -> Recipe:
    shared = {name: str(folder / f"{SHARED}-{name}") for name in ("autoencoder", "latents")}
    path = recipe.autoencoder.path or shared["autoencoder"]
    return replace(recipe, autoencoder=replace(recipe.autoencoder, path=path), latents=shared["latents"])
