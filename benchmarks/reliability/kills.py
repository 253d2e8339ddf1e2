"""Drills that end the process: kills at random moments and at renames, signals, and one run that meets every failure."""

from __future__ import annotations

import itertools
import random
import re
import signal
import time
from pathlib import Path

from .command import Command, expect, state_of
from .contents import checkpoints, fill, flip, newest, unfinished
from .context import DrillContext, short
from .faults import FILE_SIZE_LIMIT, SIGNAL_AT_RENAME


def _kill(command: Command, run: Path, kind: str, chance: random.Random, seconds: float) -> None:
    """SIGKILL at a random moment, if the command has not ended before."""
    rows, began = run / "metrics.jsonl", time.time_ns()
    if kind == "at any time":
        command.pause(chance.uniform(0, seconds))
    elif kind == "writing":
        for _ in range(chance.randint(0, 2)):  # that many checkpoints are completed before
            command.until(lambda: unfinished(run))
            command.until(lambda: not unfinished(run))
        command.until(lambda: unfinished(run))
        time.sleep(chance.uniform(0, 0.02))
    elif command.until(lambda: rows.exists() and rows.stat().st_mtime_ns > began):  # earlier rows, written again
        size = rows.stat().st_size
        command.until(lambda: rows.stat().st_size > size)
        command.pause(chance.uniform(0, 0.5))
    if command.code is None:
        command.send(signal.SIGKILL)


def random_kills(context: DrillContext, run: Path) -> str:
    """SIGKILL at any time since the start, while training, and while a checkpoint is written, in turn."""
    wanted, chance = 4 if context.quick else 50, random.Random(1)
    kinds = itertools.cycle(("training", "writing", "at any time"))
    killed = writing = without = runs = 0
    seconds, bits = context.seconds(), ""
    while killed < wanted:  # a run may end before it was killed often enough
        place, last, runs = run.with_name(f"{run.name}-{runs}"), None, runs + 1
        while True:
            command = context.start(place)
            if killed < wanted:
                _kill(command, place, next(kinds), chance, seconds)
            code = command.wait()
            silent = code and command.resumed_from is None  # killed before its first line of output
            expect(silent or command.resumed_from == last, f"resumed from {command.resumed_from}, not from {last}")
            if code == 0:
                break
            expect(code == -signal.SIGKILL, f"exit code {code}: {command.err[-500:]}")
            before, last = last, newest(place)
            expect((last or 0) >= (before or 0), f"checkpoint {before} is gone")
            killed, writing, without = killed + 1, writing + bool(unfinished(place)), without + (last is None)
        bits = context.same(place)
    return (
        f"{killed} kills, {writing} in the middle of a checkpoint, {without} before the first; every restart resumed "
        f"from the newest whole checkpoint; {runs} run{'s' * (runs > 1)} to the end, {bits}"
    )


def kills_at_renames(context: DrillContext, run: Path) -> str:
    """SIGKILL right before or after a random rename, which gives files and folders their final names, or after a while."""
    wanted, chance, killed = 4 if context.quick else 14, random.Random(7), 0
    seconds = context.seconds("latents")
    for turn in range(wanted):
        if turn % 2:
            command = context.start(run, "latents")
            command.pause(chance.uniform(0, 0.5) * seconds)
            if command.code is None:
                command.send(signal.SIGKILL)
        else:
            before = SIGNAL_AT_RENAME.format(
                signal="SIGKILL", name="", number=chance.randint(1, 11), before=chance.random() < 0.5
            )
            command = context.start(run, "latents", before)
        code = command.wait()
        expect(code in (0, -signal.SIGKILL), f"exit code {code}: {command.err[-500:]}")
        expect(not command.err, f"a message after a kill: {command.err[-500:]}")
        killed += code != 0
    expect(killed > wanted // 2 - context.quick, f"only {killed} of {wanted} were killed before they ended")
    context.start(run, "latents").finished()
    return f"{killed} of {wanted} killed before the end; {context.same(run, 'latents')}"


def signals(context: DrillContext, run: Path) -> str:
    """SIGINT while training; SIGTERM while training, and while a checkpoint is written."""
    happened = []
    for number, writing in ((signal.SIGINT, False), (signal.SIGTERM, False), (signal.SIGTERM, True)):
        last = newest(run) or 0
        command = context.frozen(
            run, lambda last=last, writing=writing: unfinished(run) if writing else (newest(run) or 0) > last
        )
        command.send(number)
        command.send(signal.SIGCONT)
        if number == signal.SIGINT:
            happened.append(f'exit code 130, "{command.refused("stopped", "last checkpoint", code=130)}"')
            continue
        command.finished()
        found = re.search(r"^stopped after ([\d,]+) of .* the same command .*$", command.out, re.MULTILINE)
        expect(found and not command.err, f"the output is: {command.out} {command.err}")
        assert found
        images = int(found[1].replace(",", ""))
        expect(newest(run) == images, f"the output names {images}, the newest checkpoint is {newest(run)}")
        happened.append(f'exit code 0, "{found[0]}"')
    return f"{', then '.join(happened)}; {context.finish(run)}"


def every_failure(context: DrillContext, run: Path) -> str:
    """One run is killed three times, a bit of its newest checkpoint flipped, its disk filled; then it ends undisturbed."""
    if context.mounts:
        run = context.disk(run) / "run"
    for number, before in ((1, True), (4, False)):
        fault = SIGNAL_AT_RENAME.format(signal="SIGKILL", name="/checkpoints/", number=number, before=before)
        command = context.start(run, "small", fault)
        expect(command.wait() == -signal.SIGKILL, f"exit code {command.code}: {command.err[-500:]}")
    command = context.frozen(run, lambda: len(checkpoints(run)) > 1 and unfinished(run), "small")
    command.send(signal.SIGKILL)
    command.wait()
    before, damaged = checkpoints(run)[-2:]
    flip(damaged / "__0_0.distcp", (damaged / "__0_0.distcp").stat().st_size // 2)
    expect(newest(run) == int(before.name), "a flipped bit is not noticed")
    if context.mounts:
        # Before the second checkpoint, when the old ones have been deleted: none of them will free any space.
        fault = SIGNAL_AT_RENAME.format(signal="SIGSTOP", name="/model.safetensors", number=2, before=False)
        command = context.start(run, "small", fault)
        expect(command.until(lambda: state_of(command.pid) == "T"), f"exit code {command.code}: {command.err[-500:]}")
        ballast = fill(run.parent, leaving=sum(file.stat().st_size for file in damaged.iterdir()) // 2)
        command.send(signal.SIGCONT)
        line = command.refused(f"cannot write {run}/", "No space left on device", "make room")
        ballast.unlink()
    else:
        command = context.start(run, "small", FILE_SIZE_LIMIT.format(size=1000))
        line = command.refused(f"cannot write {run}/", "File too large", "make room")
    expect(f"{damaged.name} is damaged" in command.out, f"no damage is named: {command.out}")
    expect(command.resumed_from == int(before.name), f"resumed from {command.resumed_from}, not from {before.name}")
    return f'killed 3 times, a damaged checkpoint skipped, "{short(line, run)}"; {context.finish(run, "small")}'
