"""The training loop, for networks and autoencoders alike.

Every draw of step k comes from (seed, k) and every image from (seed, position), so a run that was killed and started again
goes through the same numbers to the bit; nothing but weights, average, optimiser state and meters has to be kept.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import torch
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor, nn

from ditlab import atomic
from ditlab.data import Order
from ditlab.errors import UserError
from ditlab.train import checkpoint
from ditlab.train.config import TrainConfig
from ditlab.train.ema import Average
from ditlab.train.objectives import Batch, Objective

BINS = 10  # of time, in which losses are logged
METRICS = "metrics.jsonl"


def step_generator(seed: int, step: int) -> torch.Generator:
    """The generator of everything drawn in a step."""
    state = np.random.SeedSequence([seed, step]).generate_state(1, np.uint64)
    return torch.Generator().manual_seed(int(state[0]))


class Meter:
    """Losses added up on the device since the last row of metrics, in all and by bin of time."""

    def __init__(self, device: torch.device):
        self.sums = torch.zeros(BINS, dtype=torch.float64, device=device)
        self.counts = torch.zeros(BINS, dtype=torch.float64, device=device)

    def add(self, losses: Tensor, times: Tensor | None) -> None:
        """Add losses (N,) at times (N,) in [0, 1]; without times they fall into the first bin."""
        bins = (
            torch.zeros_like(losses, dtype=torch.int64) if times is None else (times * BINS).long().clamp(0, BINS - 1)
        )
        self.sums.index_add_(0, bins, losses.detach().double())
        self.counts.index_add_(0, bins, torch.ones_like(losses, dtype=torch.float64))

    def result(self, timed: bool) -> dict[str, object]:
        """Mean loss and mean loss by bin (None where a bin is empty); then start anew. Waits for the device."""
        sums, counts = self.sums.tolist(), self.counts.tolist()
        self.sums.zero_()
        self.counts.zero_()
        row: dict[str, object] = {"loss": sum(sums) / max(sum(counts), 1)}
        if timed:
            row["loss_by_time"] = [s / c if c else None for s, c in zip(sums, counts, strict=True)]
        return row


def run_tensors(
    module: nn.Module, average: Average, optimiser: torch.optim.Optimizer, meter: Meter
) -> dict[str, Tensor]:
    """Everything a checkpoint keeps, by name; the tensors themselves, so that reading into them restores the run."""
    tensors = {f"weights.{name}": tensor for name, tensor in module.state_dict().items()}
    tensors |= {f"average.{name}": tensor for name, tensor in average.module.state_dict().items()}
    for name, parameter in module.named_parameters():
        state = optimiser.state[parameter]
        if not state:  # what AdamW itself begins with
            state["step"] = torch.zeros((), dtype=torch.float32, device=parameter.device)
            state["exp_avg"], state["exp_avg_sq"] = torch.zeros_like(parameter), torch.zeros_like(parameter)
        tensors |= {f"optimiser.{name}.{key}": value for key, value in state.items()}
    return tensors | {"meter.sums": meter.sums, "meter.counts": meter.counts}


def _crossed(before: int, after: int, every: int) -> bool:
    return before // every != after // every


class _Metrics:
    """metrics.jsonl: rows up to the checkpoint a run goes on from are kept, later ones are made again."""

    def __init__(self, folder: Path, images: int):
        self.path = folder / METRICS
        rows = [row for row in read_metrics(folder) if row["images"] <= images]
        atomic.write_file(self.path, "".join(json.dumps(row) + "\n" for row in rows))

    def add(self, row: dict[str, object]) -> None:
        try:
            with self.path.open("a") as file:
                file.write(json.dumps(row) + "\n")
        except OSError as error:
            raise UserError(
                f"cannot write {self.path}: {error.strerror}; make room, then run the same command"
            ) from error


def read_metrics(folder: Path) -> list[dict]:
    """The rows of a run's metrics.jsonl; a half-written last line is passed over."""
    path = folder / METRICS
    rows = []
    for line in path.read_text().splitlines() if path.exists() else ():
        try:
            rows.append(json.loads(line))
        except ValueError:
            continue
    return rows


def train(
    objective: Objective,
    config: TrainConfig,
    *,
    seed: int,
    flip: bool,
    folder: Path,
    device: torch.device,
    say: Callable[[str], None],
    title: str,
) -> None:
    """Train to the end, from the last good checkpoint of ``folder`` where there is one.

    Args:
        objective: what to train.
        config: how.
        seed: decides order, draws and sample pictures.
        flip: mirror images at random.
        folder: the run's.
        device: where to compute.
        say: tells a person something, in one line.
        title: of the progress bar.

    Raises:
        UserError: a loss that is not a number, a full disk, checkpoints of another architecture.
    """
    config.check()
    objective.to(device)
    module = objective.module.train()
    optimiser = torch.optim.AdamW(
        module.parameters(), lr=config.rate, betas=(0.9, config.beta2), weight_decay=config.weight_decay, fused=True
    )
    average, meter = Average(module, config.ema), Meter(device)
    tensors = run_tensors(module, average, optimiser, meter)
    checkpoints = folder / "checkpoints"
    for place in (folder, folder / "samples", checkpoints):
        atomic.clear_unfinished(place)
    state = checkpoint.load_latest(checkpoints, tensors, say)
    step = int(state["step"]) if state else 0  # type: ignore[call-overload]
    if state and state.get("data", objective.fingerprint) != objective.fingerprint:
        raise UserError(
            f"the images are not those {folder} was trained on so far; put them back or choose another --out"
        )
    if step:
        say(f"going on from {step * config.batch:,} of {config.steps * config.batch:,} images")
    metrics = _Metrics(folder, step * config.batch)
    order = Order(objective.count, seed, flip)
    bad = torch.full((), config.steps, dtype=torch.int64, device=device)  # first step with a loss that is no number
    session = {"images": 0, "began": time.perf_counter(), "said": time.perf_counter(), "paused": 0.0}

    def stop_if_bad(saving: bool) -> None:
        first = int(bad)
        if saving and first == config.steps and not all(bool(tensor.isfinite().all()) for tensor in tensors.values()):
            first = step - 1  # the loss was still a number, the step it led to is not: such weights are not kept
        if first < config.steps:
            raise UserError(
                f"the loss or a weight is not a number since step {first} ({first * config.batch:,} images); the "
                f"checkpoints before it stand: try a lower --train.rate (now {config.rate:g}), --train.warmup 0.05 or "
                "--train.precision fp32, with another --out"
            )

    shown_loss = ""
    with ExitStack() as stack:
        bar = stack.enter_context(progress_bar())
        task = bar.add_task(title, total=config.steps * config.batch, completed=step * config.batch, rate="")
        while step < config.steps:
            losses, times = _step(objective, optimiser, config, order, seed, step, device)
            bad = torch.where(torch.isfinite(losses).all() | (bad < step), bad, bad.clamp(max=step))
            average.update(step)
            meter.add(losses, times)
            before, step = step * config.batch, step + 1
            images, last = step * config.batch, step == config.steps
            session["images"] += config.batch
            elapsed = time.perf_counter() - session["began"] - session["paused"]
            speed = session["images"] / max(elapsed, 1e-9)
            bar.update(task, completed=images, rate=f"{speed:,.0f} images/s{shown_loss}")
            due = {
                name: last or _crossed(before, images, getattr(config, name))
                for name in ("log", "samples", "checkpoint")
            }
            if not any(due.values()):
                continue
            stop_if_bad(due["checkpoint"])
            pause = time.perf_counter()
            row: dict[str, object] = {"images": images}
            if due["log"]:
                row |= {**meter.result(times is not None), "rate": config.rate_at(step - 1)}
                shown_loss = f", loss {row['loss']:.4f}"
                if (
                    bar.disable and time.perf_counter() - session["said"] > 60
                ):  # no terminal, but somebody may follow a log
                    session["said"] = time.perf_counter()
                    left = (config.steps - step) * config.batch / speed
                    total = config.steps * config.batch
                    say(
                        f"{title}: {images:,} of {total:,}, {speed:,.0f} images/s{shown_loss}, {left / 60:.0f} min left"
                    )
            if due["samples"]:
                row |= objective.picture(average.module, folder / "samples" / f"{images:012d}.png")
            if due["log"] or due["samples"]:
                metrics.add({**row, "images_per_second": round(speed, 1), "seconds": round(elapsed, 2)})
            if due["checkpoint"]:
                objective.save(average.module, folder, images)
                state = {"step": step, "images": images, "data": objective.fingerprint}
                checkpoint.save(checkpoints, images, tensors, state, config.keep)
            session["paused"] += time.perf_counter() - pause


def _step(
    objective: Objective,
    optimiser: torch.optim.Optimizer,
    config: TrainConfig,
    order: Order,
    seed: int,
    step: int,
    device: torch.device,
) -> tuple[Tensor, Tensor | None]:
    """One optimiser step; gives the losses (N,) and their times (N,)."""
    draws = objective.draw(step_generator(seed, step), config.batch)
    indices, flips = order.batch(step * config.batch, config.batch)
    batch: Batch = {name: value.to(device) for name, value in objective.read(indices, flips).items()}
    draws = {name: value.to(device) for name, value in draws.items()}
    with config.autocast(device):
        losses = objective.losses(batch, draws)
    losses.mean().backward()
    for group in optimiser.param_groups:
        group["lr"] = config.rate_at(step)
    optimiser.step()
    optimiser.zero_grad(set_to_none=True)
    return losses.detach(), draws.get("t")


def progress_bar() -> Progress:
    """The bar of all long work: what, how far, how fast, how long still."""
    from rich.console import Console

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[rate]}"))
    console = Console(stderr=True)
    return Progress(*columns, TimeRemainingColumn(), console=console, disable=not console.is_terminal)
