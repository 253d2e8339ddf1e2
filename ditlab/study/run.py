"""Runs a study: trains and measures the runs without a result in parallel worker processes, then writes the report."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from ditlab.data import open_data
from ditlab.errors import UserError
from ditlab.evaluate import LEAST, feature_network, metric_names
from ditlab.recipes import RunContext, encode_latents
from ditlab.recipes.prepare import Log
from ditlab.runtime import files
from ditlab.runtime.console import progress_bar
from ditlab.runtime.device import select_device
from ditlab.study.distances import build_evaluator
from ditlab.study.plan import STUDIES, Plan
from ditlab.study.report import write_report
from ditlab.study.study_run import Result, StudyRun, gmacs, load_results
from ditlab.study.worker import SHARED

POLL = 0.2  # seconds
EVERY_GPU = ("", "cuda")  # devices with which trainings take the GPUs in turn
WORKER = (sys.executable, "-m", "ditlab.study")  # takes the study's folder, the name of a training and a device


@dataclass
class Worker:
    """A process that does one training; it ends when its standard input is closed."""

    training: str
    process: subprocess.Popen[bytes]
    log: Path
    start: float

    @property
    def seconds(self) -> float:
        """Since the start."""
        return time.monotonic() - self.start

    def close(self) -> None:
        """End the process if it is alive; its training stays in its checkpoints."""
        self.process.kill()
        self.process.communicate()


def run_study(
    plan: Plan, out: Path, jobs: int, log: Log, worker: Sequence[str] = WORKER, device: str = ""
) -> list[Result]:
    """Complete a study in the folder ``out``, and write its report; returns the results of all runs, in order.

    ``jobs`` trainings run in parallel; 0 is one per GPU, or one per CPU core. ``worker`` is the command of their processes.
    They run on ``device``, as of ``select_device``; empty or cuda: on all GPUs in turn.
    Raises UserError if a result has other settings, or if trainings failed; measured results stay.
    """
    plan.check()
    select_device(device)  # raises for one that is absent
    if jobs < 0:
        raise UserError(f"--jobs {jobs} must be 1 or more, or 0 for one per GPU or core")
    study = STUDIES[plan.study]
    with files.locked(out, "the study"):
        plan = replace(plan, rates={})
        results = _complete(plan, out, jobs, log, worker, device)
        if study.choose is not None:
            plan = replace(plan, rates=study.choose(results))
            results = _complete(plan, out, jobs, log, worker, device)
        log(f"report: {write_report(plan, results, out)}")
        return results


def _complete(plan: Plan, out: Path, jobs: int, log: Log, worker: Sequence[str], device: str) -> list[Result]:
    """Train and measure the runs of a plan that have no result; returns all results, in the plan's order."""
    runs, study = plan.runs, STUDIES[plan.study]
    results = load_results(runs, out)
    waiting = _trainings([run for run, result in zip(runs, results, strict=True) if result is None])
    measured = len(runs) - results.count(None)
    what = "runs" if study.search is None or plan.rates else "runs that search learning rates"
    log(f"{study.title}: {measured} of {len(runs)} {what} measured, {len(waiting)} trainings to do in {out}")
    if waiting:
        if study.prompts:
            log(f"metric: accuracy of {plan.preset.count} prompts of each task")
            encode_latents(plan.preset.recipe, RunContext(out / SHARED, select_device(device), log))
        else:
            log(f"metric: {choose_metric(plan)}")
            build_evaluator(plan, select_device(device))  # fills the cache that all workers read
        plan.save(out)
        _work(waiting, out, jobs or _default_jobs(device), log, worker, device)
    return [result for result in load_results(runs, out) if result is not None]


def choose_metric(plan: Plan) -> str:
    """The metric that compares the runs of a plan, and why where it is not the Frechet distance, known before any training.

    UserError: fewer samples than it needs.
    """
    dataset, count = open_data(plan.recipe.data), plan.preset.count
    network = feature_network(plan.network, (dataset.shape[1], dataset.shape[2]), plan.weights)
    names, needed = metric_names(network.distance), network.width + 1
    if len(dataset) >= needed > count:
        raise UserError(
            f"--count: {count:,} samples are too few for {names['frechet']}; a covariance of {network.width:,} features needs "
            f"at least {needed:,}"
        )
    for images, kind in ((count, "--count: {} samples"), (len(dataset), "{} real images")):
        if images < LEAST:
            raise UserError(f"{kind.format(images)} are too few to be measured; at least {LEAST} needed")
    if len(dataset) >= needed:
        return names["frechet"]
    return f"{names['kernel']}; {len(dataset):,} real images are too few for {names['frechet']}, which needs {needed:,}"


def _default_jobs(device: str) -> int:
    gpus = 0 if device == "cpu" else torch.cuda.device_count() if device in EVERY_GPU else 1
    return gpus or os.cpu_count() or 1


def _trainings(runs: Sequence[StudyRun]) -> dict[str, float]:
    """The GMACs of each training, largest first, so that no long one starts last."""
    spent = {run.training: 3 * gmacs(run.recipe) * run.recipe.train.images for run in runs}
    return dict(sorted(spent.items(), key=lambda item: item[1], reverse=True))


def _work(costs: dict[str, float], out: Path, jobs: int, log: Log, worker: Sequence[str], device: str) -> None:
    """Keep ``jobs`` workers busy until every training has been tried."""
    jobs = min(jobs, len(costs))
    slots: list[Worker | None] = [None] * jobs
    queue, failed = list(costs), []
    done, spent = 0.0, 0.0  # GMACs of the finished trainings, and their seconds
    bar = progress_bar()
    bar.start()
    progress = bar.add_task("trainings", total=len(costs), rate=f"{jobs} at a time")
    try:
        while queue or any(slots):
            for slot, active in enumerate(slots):
                if active is not None and active.process.poll() is not None:
                    active.close()
                    slots[slot] = None
                    done, spent = done + costs[active.training], spent + active.seconds
                    if active.process.returncode:
                        failed.append(active.training)
                    running = sum(other.seconds for other in slots if other is not None)
                    left = max((sum(costs.values()) - done) * spent / done - running, 0) / jobs
                    more = f"; about {left / 60:.0f} min left" if queue or any(slots) else ""
                    log(_summary(active) + more)
                    bar.advance(progress)
                if slots[slot] is None and queue:
                    slots[slot] = _start(queue.pop(0), out, slot, jobs, worker, device)
            time.sleep(POLL)
    finally:
        bar.stop()
        for active in filter(None, slots):
            active.close()
    if failed:
        raise UserError(
            f"{len(failed)} of {len(costs)} trainings failed: {', '.join(failed)}; logs: {out / 'runs'}; the same command "
            "retries them"
        )


def _start(training: str, out: Path, slot: int, jobs: int, worker: Sequence[str], device: str) -> Worker:
    log = out / "runs" / f"{training}.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    environment = {**os.environ, "OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // jobs))}
    if torch.cuda.is_available() and device in EVERY_GPU:
        visible = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")
        devices = visible if visible != [""] else [str(k) for k in range(torch.cuda.device_count())]
        environment["CUDA_VISIBLE_DEVICES"] = devices[slot % len(devices)]
    with log.open("ab") as file:
        process = subprocess.Popen(
            [*worker, str(out), training, device], stdin=subprocess.PIPE, stdout=file, stderr=subprocess.STDOUT,
            env=environment, start_new_session=True,
        )  # fmt: skip
    return Worker(training, process, log, time.monotonic())


def _summary(worker: Worker) -> str:
    """The log line of a worker that ended."""
    lines = worker.log.read_text(errors="replace").strip().splitlines() or [""]
    if worker.process.returncode:
        return f"{worker.training} failed after {worker.seconds:.0f} s: {lines[-1]} ({worker.log})"
    return f"{lines[-1]}, after {worker.seconds:.0f} s"
