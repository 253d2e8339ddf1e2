"""Drills on running processes: a second start, a clock set back, bad losses, hangs, and lost workers under torchrun."""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path

import numpy as np

from .command import expect, state_of, worker
from .contents import checkpoints, content, newest
from .context import FLAGS, DrillContext, short
from .faults import BAD_LOSSES, BLOCKED_READ, CLOCK_SET_BACK

HUNG = 3  # exit code


def two_at_once(context: DrillContext, run: Path) -> str:
    """The same command is started a second time while the first one trains."""
    first = context.frozen(run, lambda: checkpoints(run))
    locked = _written(run)
    line = context.start(run).refused("another process", "--out")
    expect(locked == _written(run), f"the second one wrote {set(_written(run)) ^ set(locked)}")
    first.send(signal.SIGCONT)
    first.finished()
    return f'the second: exit code 2, "{short(line, run)}", nothing written; the first ended, {context.same(run)}'


def _written(run: Path) -> dict[str, int]:
    """When each file and folder was written, but for the lock file, which every process opens."""
    return {str(path): path.stat().st_mtime_ns for path in run.rglob("*") if path.name != ".lock"}


def clock(context: DrillContext, run: Path) -> str:
    """Python's clock goes back by a day when the first checkpoint is there."""
    counts = run.with_name("calls.txt")
    when = str(run / "checkpoints" / f"{FLAGS['train.checkpoint']:012d}")
    command = context.start(run, before=CLOCK_SET_BACK.format(when=when, counts=str(counts)))
    command.finished()
    early, late = map(int, counts.read_text().split())
    expect(early and late, "the clock was not read before and after")
    return f"read {early} times before and {late} times after; {context.same(run)}"


def nan_at_times(context: DrillContext, run: Path) -> str:
    """NaN losses in steps 3 and 17, an infinite one in step 30, a gradient beyond float32 in step 45."""
    factors = {3: "nan", 17: "nan", 30: "inf", 45: "1e38"}
    before = BAD_LOSSES.format(factor=f"lambda step: {factors}.get(step, 1)")
    context.start(run, before=before, train_microbatch=32).finished()
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    expect(rows[-1]["skipped"] == len(factors), f"{rows[-1]['skipped']} steps are counted as skipped")
    values = [np.frombuffer(data, np.float32) for name, data in content(run).items() if "weights." in name]
    expect(values and all(np.isfinite(value).all() for value in values), "weights are NaN or Inf")
    unbroken = (context.reference() / "metrics.jsonl").read_text().splitlines()
    loss, other = rows[-1]["loss"], json.loads(unbroken[-1])["loss"]
    expect(abs(loss / other - 1) < 0.25, f"the last loss is {loss}, of the undisturbed run {other}")
    return (
        f"{len(factors)} steps skipped and counted; all weights finite; last loss {loss:.3f}, undisturbed {other:.3f}"
    )


def nan_for_good(context: DrillContext, run: Path) -> str:
    """Every loss from step 40 on is NaN."""
    before = BAD_LOSSES.format(factor="lambda step: 'nan' if step >= 40 else 1")
    line = context.start(run, before=before, train_microbatch=32).refused(
        "20 of them in a row", "--train.lr", "--train.max-grad-norm"
    )
    expect(newest(run) == 40 * 32, f"the newest checkpoint is {newest(run)}, not the last before the NaNs")
    return f'after 20 steps exit code 2, "{short(line, run)}"; without the fault {context.finish(run, train_microbatch=32)}'


def blocked(context: DrillContext, run: Path) -> str:
    """Reading a batch never ends, --train.timeout 6."""
    command = context.start(run, before=BLOCKED_READ, train_timeout=6)
    line = command.refused("finished no step", "last checkpoint", code=HUNG)
    traces = (run / "hang-0.txt").read_text()
    expect("in blocked" in traces, f"the place is not in: {traces}")
    return f'exit code {HUNG}, "{short(line, run)}", and it does; {context.finish(run, train_timeout=6)}'


def stopped_worker(context: DrillContext, run: Path) -> str:
    """Two processes under torchrun, --train.timeout 15; one gets SIGSTOP."""
    happened = []
    for rank in (1,) if context.quick else (1, 0):
        place = run.with_name(f"{run.name}-{rank}")
        command = context.start(place, "pair", train_timeout=15)
        expect(command.until(lambda place=place: checkpoints(place)), f"it ended: {command.err[-500:]}")
        stopped, other = worker(command, rank), worker(command, 1 - rank)
        os.kill(stopped, signal.SIGSTOP)
        began = time.monotonic()
        command.until(lambda other=other: state_of(other) == "Z", 60)
        seconds = time.monotonic() - began
        if context.quick:
            os.kill(stopped, signal.SIGKILL)  # torchrun does, after 30 seconds
        expect(command.wait(60) != 0, "torchrun ended with exit code 0")
        ended = time.monotonic() - began
        lines = [line for line in command.err.splitlines() if line.startswith("ditlab: ")]
        expect(len(lines) == 1 and f"process {1 - rank}" in lines[0], f"not one line: {command.err[-1500:]}")
        expect("Traceback" not in command.err.split("elastic/multiprocessing")[0], f"a traceback: {command.err[:1500]}")
        end = "" if context.quick else "; " + context.finish(place, "pair", train_timeout=15)
        happened.append(
            f'{rank} stopped: after {seconds:.0f} s the other printed "{short(lines[0], place)}", after {ended:.0f} s '
            f"torchrun ended{end}"
        )
    return "; ".join(happened)


def killed_worker(context: DrillContext, run: Path) -> str:
    """Two processes under torchrun --max-restarts 2; one gets SIGKILL."""
    command = context.start(run, "pair", restarts=2)
    expect(command.until(lambda: checkpoints(run)), f"it ended: {command.err[-500:]}")
    os.kill(worker(command, 1), signal.SIGKILL)
    command.finished()
    expect(command.resumed_from, "it never resumed")
    return f"it restarted by itself and resumed from {command.resumed_from:,}; {context.same(run, 'pair')}"
