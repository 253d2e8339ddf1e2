"""The training loop, for networks and autoencoders, on one process or many.

The draws of step k come from (seed, k) and its images from (seed, position), so a run that was killed and started again
continues with the same numbers, to the bit. Only weights, average, optimiser state and averaged metrics are stored.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack, closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from ditlab.data import DataOrder
from ditlab.errors import Stopped, UserError
from ditlab.runtime import files
from ditlab.runtime.console import progress_bar
from ditlab.runtime.distributed import ALONE, Processes
from ditlab.train.callbacks import Callback, Event, Row
from ditlab.train.checkpoint import Checkpoints, Log
from ditlab.train.config import TrainConfig
from ditlab.train.meter import Metrics, read_metrics
from ditlab.train.microbatch import memory_settings, stored_microbatch
from ditlab.train.monitor import BlockMonitor
from ditlab.train.prefetch import Prefetcher
from ditlab.train.profile import Profile
from ditlab.train.speed import Speed
from ditlab.train.stop import FIRST_PICTURE, PictureTimes, StopSignal
from ditlab.train.task import Task
from ditlab.train.timing import resumed_threads
from ditlab.train.trainer import Trainer
from ditlab.train.watchdog import Watchdog


def train(
    task: Task, config: TrainConfig, *, seed: int, flip: bool, folder: Path, device: torch.device, log: Log, title: str,
    callbacks: Sequence[Callback] = (), processes: Processes = ALONE, profile: bool = False,
    first_picture: float = FIRST_PICTURE,
    begin: Callable[[], None] | None = None,
) -> None:  # fmt: skip
    """Train to the end, from the newest intact checkpoint of ``folder`` if it has one.

    ``seed`` decides the order of images, which ``flip`` mirrors at random, and the draws; ``processes`` share every batch.
    ``log`` writes lines to the console, ``title`` names the progress bar, ``profile`` writes the times of a step's phases.
    Besides the pictures every ``config.samples`` images, previews are drawn after ``first_picture`` seconds of training and
    then each time twice as late.
    ``begin`` is called before the first step, and not where training resumes: it may load weights into the task's module.

    Raises:
        UserError: training diverged, the disk is full, or the checkpoints are of another architecture.
        Stopped: SIGTERM was received; everything is saved.
    """
    config.check()
    config.check_processes(processes.size)
    if not config.images:
        raise UserError("--train.images 0 is not chosen for the machine yet; give a number of images")
    total, sharded = config.steps * config.batch, config.shards(processes.size)
    checkpoints = Checkpoints(folder / "checkpoints", config.keep_checkpoints, processes, log, sharded, device)
    with ExitStack() as stack:
        stack.callback(checkpoints.close)
        stack.enter_context(config.matmul_precision(device))
        folders = (folder, folder / "samples", checkpoints.folder)
        processes.broadcast_from_main(lambda: [files.clear_unfinished(each) for each in folders])
        state = checkpoints.find()
        if device.type == "cpu":
            torch.set_num_threads(resumed_threads(config, state))
        if state is None and begin is not None:
            begin()
        trainer = Trainer(task, config, processes, device, stored_microbatch(state, config, processes, device))
        step = _restore(trainer, checkpoints, state, log)
        if step == config.steps:
            return
        order = DataOrder(task.count, seed, flip)
        prefetcher = Prefetcher(task, order, seed, config.batch, config.steps, step, processes, device)
        stack.enter_context(closing(prefetcher))
        speed = Speed(config.precision_on(device), 3 * 2 * task.macs, device, processes)
        bar = stack.enter_context(progress_bar(shown=processes.is_main))
        stop = stack.enter_context(closing(StopSignal(processes)))
        pictures = PictureTimes(first_picture)
        watchdog = stack.enter_context(Watchdog(config.timeout, folder, processes))
        profiled = folder / "profile" if profile and processes.is_main else None
        profiler = stack.enter_context(closing(Profile(profiled, log)))
        outputs = _Outputs(trainer, checkpoints, callbacks, speed, folder, step)
        progress = bar.add_task(title, total=total, completed=step * config.batch, rate=speed)
        speed.start()
        while step < config.steps and not stop.requested:
            with profiler.phase("waiting for data"):
                batch, draws = prefetcher.take()
            trainer.step(step, batch, draws, profiler)
            step += 1
            speed.add(config.batch)
            outputs.stepped(step)
            watchdog.beat()
            profiler.step()
            stop.poll(pictures.due(speed.seconds))
            checkpoints.poll()
            bar.update(progress, completed=step * config.batch, step=f"step {step:,} of {config.steps:,}")
            due = config.due(step) | ({"checkpoint"} if stop.requested else set())
            if "samples" in due:
                pictures.drawn(speed.seconds)
            elif stop.picture:
                due = due | {"preview"}
            if due:
                with speed.paused(), watchdog.paused():
                    outputs.write(step, due)
        checkpoints.wait()
        outputs.end(step)
        processes.barrier()
    if step < config.steps:
        raise Stopped(f"stopped after {step * config.batch:,} of {total:,} images; run the same command to resume")


def _restore(trainer: Trainer, checkpoints: Checkpoints, state: dict[str, Any] | None, log: Log) -> int:
    """Read the checkpoint that was found into the trainer; returns the number of steps done."""
    config, run = trainer.config, checkpoints.folder.parent
    if not config.microbatch and trainer.microbatch < config.batch // trainer.processes.size:
        log(f"microbatch {trainer.microbatch}, which fits in memory, of {config.batch} a step (--train.microbatch)")
    if state is None:
        if trainer.processes.is_main and any(row["images"] > config.checkpoint for row in read_metrics(run)):
            log(f"no checkpoint in {checkpoints.folder}: training from the beginning")
        return 0
    checkpoints.read(trainer.tensors)
    if state.get("data", trainer.task.fingerprint) != trainer.task.fingerprint:
        raise UserError(f"{run} was trained on other images; restore them or choose another --out")
    trainer.metrics.restore(state["meter"], trainer.processes)
    images, total = state["step"] * config.batch, config.steps * config.batch
    log(f"resumed from the checkpoint at {images:,} of {total:,} images")
    return state["step"]


class _Outputs:
    """Writes rows of metrics, runs the callbacks and saves checkpoints."""

    def __init__(
        self, trainer: Trainer, checkpoints: Checkpoints, callbacks: Sequence[Callback], speed: Speed,
        folder: Path, step: int,
    ):  # fmt: skip
        self.trainer, self.checkpoints, self.speed, self.folder = trainer, checkpoints, speed, folder
        self.callbacks = [*callbacks, *([BlockMonitor()] if trainer.config.monitor_blocks else [])]
        images = step * trainer.config.batch
        self.metrics = trainer.processes.broadcast_from_main(lambda: Metrics(folder, images))

    def _event(self, step: int) -> Event:
        trainer, config = self.trainer, self.trainer.config
        images, total, last = step * config.batch, config.steps * config.batch, step == config.steps
        return Event(
            images, total, last, self.folder, trainer.task, trainer.ema, config, trainer.processes, trainer.device
        )

    def stepped(self, step: int) -> None:
        """After ``step`` steps: the callbacks of each."""
        event = self._event(step)
        for callback in self.callbacks:
            callback.on_step(event)

    def end(self, step: int) -> None:
        """After the last checkpoint."""
        event = self._event(step)
        for callback in self.callbacks:
            callback.on_end(event)

    def write(self, step: int, due: set[str]) -> None:
        """Everything that is due after ``step`` steps: ``log``, ``samples``, ``preview``, ``checkpoint``."""
        trainer, config, processes = self.trainer, self.trainer.config, self.trainer.processes
        trainer.check("checkpoint" in due)
        event = self._event(step)
        images = event.images
        row: Row = {"images": images}
        if "log" in due:
            row |= trainer.metrics.result(processes) | {"lr": config.lr_at(step - 1)}
            self.speed.loss = row["loss"]  # type: ignore[assignment]
            for callback in self.callbacks:
                row |= callback.on_log(event)
        if "samples" in due:
            for callback in self.callbacks:
                row |= callback.on_samples(event)
        if "preview" in due:  # no row: a run that resumes has the same rows as one that does not
            for callback in self.callbacks:
                callback.on_samples(replace(event, preview=True))
        if due & {"log", "samples"}:
            row |= self.speed.row()
            if processes.is_main:
                self.metrics.add(row)
            for callback in self.callbacks:
                callback.on_metrics(event, row)
        if "checkpoint" in due:
            before = [callback.on_checkpoint(event) for callback in self.callbacks]
            state = {"step": step, "images": images, "data": trainer.task.fingerprint}
            state["meter"], state["threads"] = trainer.metrics.state(processes), torch.get_num_threads()
            if not config.microbatch:
                state["microbatch"] = [trainer.microbatch, memory_settings(config, processes, trainer.device)]
            self.checkpoints.save(images, trainer.tensors, state, before)
