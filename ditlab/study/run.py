"""A study run: finished cells are skipped, the other runs are trained and measured side by side, then the report is written."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from ditlab.data import open_data
from ditlab.errors import UserError
from ditlab.evaluate import enough
from ditlab.models import NetworkInput, cost
from ditlab.recipes.prepare import Log
from ditlab.runtime import files
from ditlab.runtime.device import default_device
from ditlab.study.plan import STUDIES, Plan
from ditlab.study.report import write_report
from ditlab.study.study_run import Result, StudyRun, finished
from ditlab.study.worker import build_evaluator

POLL = 0.2  # seconds


@dataclass
class Worker:
    """A process that does one run; it ends when its standard input does."""

    run: str
    process: subprocess.Popen[bytes]
    log: Path
    began: float

    @property
    def seconds(self) -> float:
        """Since it began."""
        return time.monotonic() - self.began

    def close(self) -> None:
        """End it, where it has not ended: what it has trained is in its checkpoints."""
        self.process.kill()
        self.process.communicate()


def run_study(plan: Plan, out: Path, jobs: int, log: Log) -> list[Result]:
    """Do what of a study is not done yet, and write ``results.json``, ``report.md`` and its figures.

    Args:
        plan: the study.
        out: its folder.
        jobs: runs side by side; 0 is one a GPU, or one a core.
        log: writes one line to the console.

    Returns:
        The results of all cells, in the order of the report.

    Raises:
        UserError: a cell was measured with other settings, or runs failed; what was measured stands.
    """
    plan.check()
    if jobs < 0:
        raise UserError(f"--jobs {jobs} must be 1 or more, or 0 for one a GPU or core")
    with files.locked(out, "the study"):
        cells = plan.cells
        results = [finished(cell, out / "cells") for cell in cells]
        waiting = _runs([cell for cell, result in zip(cells, results, strict=True) if result is None])
        done = len(cells) - results.count(None)
        log(f"{STUDIES[plan.study].title}: {len(cells)} cells, {done} measured, {len(waiting)} runs to do in {out}")
        if waiting:
            network, evaluator = build_evaluator(plan, default_device())  # once, before workers would each do it
            if evaluator.can_measure:
                enough(plan.form.count, network.width)
            plan.save(out)
            _work(waiting, out, jobs or torch.cuda.device_count() or os.cpu_count() or 1, log)
        measured = [result for cell in cells if (result := finished(cell, out / "cells")) is not None]
        report = write_report(plan, measured, out)
        log(f"report: {report}")
        return measured


def _runs(cells: Sequence[StudyRun]) -> list[StudyRun]:
    """One cell of each run, the most work first, so that none is left alone at the end."""
    first: dict[str, StudyRun] = {}
    for cell in cells:
        first.setdefault(cell.run, cell)
    return sorted(first.values(), key=_training_gmacs, reverse=True)


def _training_gmacs(cell: StudyRun) -> float:
    recipe = cell.recipe
    dataset = open_data(recipe.data)
    channels, height, width = dataset.shape
    if recipe.autoencoder.kind == "kl":
        factor = recipe.autoencoder.factor
        channels, height, width = recipe.autoencoder.latent_channels, height // factor, width // factor
    shape = NetworkInput(channels, height, width, len(dataset.names), recipe.diffusion.learned_variance)
    return 3 * cost(recipe.model, shape).gmacs * recipe.train.images


def _work(waiting: list[StudyRun], out: Path, jobs: int, log: Log) -> None:
    """Keep ``jobs`` workers busy until every run was tried."""
    jobs = min(jobs, len(waiting))
    work = {cell.run: _training_gmacs(cell) for cell in waiting}
    slots: list[Worker | None] = [None] * jobs
    queue, failed = [cell.run for cell in waiting], []
    done, spent = 0.0, 0.0  # work of the runs that ended, and the seconds they took
    try:
        while queue or any(slots):
            for slot, worker in enumerate(slots):
                if worker is not None and worker.process.poll() is not None:
                    worker.close()
                    slots[slot] = None
                    done, spent = done + work[worker.run], spent + worker.seconds
                    if worker.process.returncode:
                        failed.append(worker.run)
                    running = sum(other.seconds for other in slots if other is not None)
                    left = max((sum(work.values()) - done) * spent / done - running, 0) / jobs
                    log(f"{_ended(worker)}; about {left / 60:.0f} min left" if queue or any(slots) else _ended(worker))
                if slots[slot] is None and queue:
                    slots[slot] = _start(queue.pop(0), out, slot, jobs)
            time.sleep(POLL)
    finally:
        for worker in filter(None, slots):
            worker.close()
    if failed:
        raise UserError(
            f"{len(failed)} of {len(work)} runs failed: {', '.join(failed)}; their logs are in {out / 'runs'}; the same "
            "command tries them again"
        )


def _start(run: str, out: Path, slot: int, jobs: int) -> Worker:
    log = out / "runs" / f"{run}.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    environment = {**os.environ, "OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // jobs))}
    if torch.cuda.is_available():
        visible = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")
        devices = visible if visible != [""] else [str(k) for k in range(torch.cuda.device_count())]
        environment["CUDA_VISIBLE_DEVICES"] = devices[slot % len(devices)]
    command = [sys.executable, "-m", "ditlab.study", str(out), run]
    with log.open("ab") as file:
        process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=file,
            stderr=subprocess.STDOUT,
            env=environment,
            start_new_session=True,
        )
    return Worker(run, process, log, time.monotonic())


def _ended(worker: Worker) -> str:
    """What to say of a worker that ended."""
    lines = worker.log.read_text(errors="replace").strip().splitlines() or [""]
    if worker.process.returncode:
        return f"{worker.run} failed after {worker.seconds:.0f} s: {lines[-1]} ({worker.log})"
    return f"{lines[-1]}, after {worker.seconds:.0f} s"
