"""The training loop, for networks and autoencoders alike, on one process or many.

Every draw of step k comes from (seed, k) and every image from (seed, position), so a run that was killed and started again
goes through the same numbers to the bit; nothing but weights, average, optimiser state and meters has to be kept.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack, closing
from pathlib import Path

import torch
from torch import Tensor, nn

from ditlab.data import DataOrder
from ditlab.errors import Stopped, UserError
from ditlab.runtime import files
from ditlab.runtime.console import progress_bar
from ditlab.runtime.device import check_compiler
from ditlab.runtime.distributed import ALONE, Processes
from ditlab.train.checkpoint import Checkpoints
from ditlab.train.config import TrainConfig
from ditlab.train.ema import EMA
from ditlab.train.meter import MetricAverager, Metrics, read_metrics
from ditlab.train.parallel import Parallel, gradient_norm, here, shard
from ditlab.train.prefetch import Prefetcher
from ditlab.train.profile import Profile
from ditlab.train.speed import Speed, microbatch_that_fits
from ditlab.train.stop import StopSignal
from ditlab.train.tasks import Task
from ditlab.train.watchdog import Watchdog

MOST_SKIPPED = 20  # steps in a row whose loss or gradient is no number, after which a run is given up


def run_tensors(module: nn.Module, average: EMA, optimiser: torch.optim.Optimizer) -> dict[str, Tensor]:
    """What a checkpoint keeps, by name; the tensors themselves, so that reading into them restores the run."""
    tensors = {f"weights.{name}": tensor for name, tensor in module.state_dict().items()}
    tensors |= {f"average.{name}": tensor for name, tensor in average.module.state_dict().items()}
    for name, parameter in module.named_parameters():
        state = optimiser.state[parameter]
        if not state:  # what AdamW itself begins with
            state["step"] = torch.zeros((), dtype=torch.float32, device=parameter.device)
            state["exp_avg"], state["exp_avg_sq"] = torch.zeros_like(parameter), torch.zeros_like(parameter)
        tensors |= {f"optimiser.{name}.{key}": value for key, value in state.items()}
    return tensors


def _clear_unfinished(*places: Path) -> None:
    for place in places:
        files.clear_unfinished(place)


def _crossed(before: int, after: int, every: int) -> bool:
    return before // every != after // every


class Trainer:
    """What changes from step to step: weights, average, optimiser, losses added up."""

    def __init__(self, objective: Task, config: TrainConfig, processes: Processes, device: torch.device):
        self.objective, self.config, self.processes, self.device = objective, config, processes, device
        self.sharded = processes.size > 1 and config.parallel == "fsdp"
        objective.to(device)
        module = objective.module.train()
        if config.activation_checkpointing:
            objective.recompute()
        # The same for all: with shards, a part more in one process would wait for the others for ever.
        self.part = config.microbatch or processes.all_reduce_min(
            microbatch_that_fits(objective, config, device, processes)
        )
        self.average = EMA(module, config.ema)
        if config.compiles_on(device):  # not the average, which samples other shapes
            check_compiler(device, "--train.compile off")
            for part in objective.parts(module):
                part.compile()
        if self.sharded:
            for each in (module, self.average.module):
                shard(each, objective, config, processes, device)
        self.parallel = Parallel(objective, config, processes, device)
        self.parameters = [parameter for parameter in module.parameters() if parameter.requires_grad]
        self.optimiser = torch.optim.AdamW(
            self.parameters, lr=config.lr, betas=(0.9, config.beta2), weight_decay=config.weight_decay, fused=True
        )
        self.meter = MetricAverager(device)

    @property
    def tensors(self) -> dict[str, Tensor]:
        """What a checkpoint keeps; asked for each time, since FSDP may move parameters to other storage."""
        return run_tensors(self.objective.module, self.average, self.optimiser)

    def step(self, step: int, batch: dict[str, Tensor], draws: dict[str, Tensor], profile: Profile) -> None:
        """Train on one batch; nothing here waits for the device.

        Where the loss or the gradient is no number, weights and optimiser stay as they are and the step is counted.
        """
        with profile.phase("forward and backward"):
            losses = self.parallel.backward(batch, draws, self.part)
        with profile.phase("optimiser"):
            norm = gradient_norm(self.parameters)
            finite = norm.isfinite() & self.parallel.everywhere(losses.isfinite().all())
            if self.config.max_grad_norm:
                shorter = (self.config.max_grad_norm / norm.clamp(min=1e-12)).clamp(max=1.0)
                gradients = [here(parameter.grad) for parameter in self.parameters if parameter.grad is not None]
                torch._foreach_mul_(gradients, shorter)
            for group in self.optimiser.param_groups:
                group["lr"] = self.config.lr_at(step)
            # Where this is 1 the fused kernel leaves everything as it is.
            self.optimiser.found_inf = (~finite).float()  # type: ignore[attr-defined]
            self.optimiser.step()
            self.optimiser.zero_grad(set_to_none=True)
        with profile.phase("average"):
            self.average.update(step)
        self.meter.add(losses, draws.get("t"), finite)

    def check(self, saving: bool) -> None:
        """Raise UserError where the run is lost: too many steps left out in a row, or weights that are no numbers."""
        total, _, longest = self.meter.skipped.tolist()
        lost = longest >= MOST_SKIPPED
        what = f"{total} steps had a loss or gradient that is no number, {longest} of them in a row"
        if saving and not lost:
            bad = torch.stack([~here(tensor).isfinite().all() for tensor in self.tensors.values()]).any()
            lost = bool(self.processes.all_reduce_sum(bad.long()))
            what = "a weight is no longer a number"
        if lost:
            raise UserError(
                f"{what}; the checkpoints before stand: try a lower --train.lr (now {self.config.lr:g}), "
                "--train.warmup 0.05, --train.max-grad-norm 1 or --train.precision fp32, with another --out"
            )


def train(
    objective: Task,
    config: TrainConfig,
    *,
    seed: int,
    flip: bool,
    folder: Path,
    device: torch.device,
    log: Callable[[str], None],
    title: str,
    processes: Processes = ALONE,
    profile: bool = False,
) -> None:
    """Train to the end, from the last good checkpoint of ``folder`` where there is one.

    Args:
        objective: what to train.
        config: how.
        seed: decides order, draws and sample pictures.
        flip: mirror images at random.
        folder: the run's.
        device: where to compute.
        log: writes one line to the console.
        title: of the progress bar.
        processes: that share every batch.
        profile: write where a step's time goes into ``profile`` inside the folder.

    Raises:
        UserError: losses that are not numbers, a full disk, checkpoints of another architecture.
        Stopped: SIGTERM came; all is saved.
    """
    config.check()
    config.check_processes(processes.size)
    trainer = Trainer(objective, config, processes, device)
    if not config.microbatch and trainer.part < config.batch // processes.size:
        log(f"{trainer.part} images at a time fit in memory: {config.batch} a step in parts (--train.microbatch)")
    checkpoints = Checkpoints(folder / "checkpoints", config.keep_checkpoints, processes, log, trainer.sharded)
    processes.broadcast_from_main(lambda: _clear_unfinished(folder, folder / "samples", checkpoints.folder))
    state = checkpoints.load(trainer.tensors)
    step = int(state["step"]) if state else 0  # type: ignore[call-overload]
    if state:
        if state.get("data", objective.fingerprint) != objective.fingerprint:
            raise UserError(
                f"the images are not those {folder} was trained on so far; put them back or choose another --out"
            )
        trainer.meter.restore(state["meter"], processes)  # type: ignore[arg-type]
        log(f"going on from {step * config.batch:,} of {config.steps * config.batch:,} images")
    elif processes.is_main and any(row["images"] > config.checkpoint for row in read_metrics(folder)):
        log(f"no checkpoint in {checkpoints.folder}: training from the beginning")
    if step == config.steps:
        return
    metrics = processes.broadcast_from_main(lambda: Metrics(folder, step * config.batch))
    order, total = DataOrder(objective.count, seed, flip), config.steps * config.batch
    speed = Speed(config.precision_on(device), 3 * 2 * objective.macs, device, processes)
    with ExitStack() as stack:
        stack.callback(checkpoints.close)
        feed = stack.enter_context(
            closing(Prefetcher(objective, order, seed, config.batch, config.steps, step, processes, device))
        )
        bar = stack.enter_context(progress_bar(shown=processes.is_main))
        stop = stack.enter_context(StopSignal(processes))
        watchdog = stack.enter_context(Watchdog(config.timeout, folder, processes))
        profiler = stack.enter_context(Profile(folder / "profile" if profile and processes.is_main else None, log))
        task = bar.add_task(title, total=total, completed=step * config.batch, rate="")
        speed.start()
        while step < config.steps and not stop.asked:
            with profiler.phase("waiting for data"):
                batch, draws = feed.take()
            trainer.step(step, batch, draws, profiler)
            before, step = step * config.batch, step + 1
            images, last = step * config.batch, step == config.steps
            speed.add(config.batch)
            watchdog.beat()
            profiler.step()
            stop.listen()
            if not bar.disable:
                bar.update(task, completed=images, rate=speed.line)
            due = {name: last or _crossed(before, images, getattr(config, name)) for name in ("log", "samples")}
            due["checkpoint"] = last or stop.asked or _crossed(before, images, config.checkpoint)
            checkpoints.poll()
            if not any(due.values()):
                continue
            with speed.paused(), watchdog.paused():
                trainer.check(due["checkpoint"])
                row: dict[str, object] = {"images": images}
                if due["log"]:
                    row |= {**trainer.meter.result(processes, "t" in draws), "rate": config.lr_at(step - 1)}
                    speed.loss = row["loss"]  # type: ignore[assignment]
                    if bar.disable and speed.quiet_for(60):  # no terminal, but somebody may follow a log
                        left = (total - images) / speed.images_per_second
                        log(f"{title}: {images:,} of {total:,}, {speed.line}, {left / 60:.0f} min left")
                average = trainer.average.whole() if due["samples"] or due["checkpoint"] else None
                if due["samples"] and average is not None:
                    row |= objective.picture(average, folder / "samples" / f"{images:012d}.png", processes)
                if (due["log"] or due["samples"]) and processes.is_main:
                    metrics.add({**row, **speed.row()})
                if due["checkpoint"] and average is not None:
                    if processes.is_main:
                        objective.save(average, folder, images)
                    meter = trainer.meter.state(processes)
                    state = {"step": step, "images": images, "data": objective.fingerprint, "meter": meter}
                    checkpoints.save(images, trainer.tensors, state)
        checkpoints.wait()
        processes.barrier()
    if step < config.steps:
        raise Stopped(f"stopped after {step * config.batch:,} of {total:,} images; the same command goes on from there")
