"""Drills on files: full and read-only disks, folders removed or replaced, flipped bits."""

from __future__ import annotations

import re
import shutil
import signal
import subprocess
from pathlib import Path

import numpy as np

from .command import expect
from .contents import PARTS, checkpoints, fill, flip, unfinished, whole
from .context import DrillContext, short
from .faults import FILE_SIZE_LIMIT


def full_checkpoint(context: DrillContext, run: Path) -> str:
    """A small disk is filled up; the free space takes the model file and half a checkpoint."""
    disk = context.disk(run)
    run = disk / "run"
    command = context.frozen(run, lambda: len(checkpoints(run)) == 1 and not unfinished(run))
    size = sum(path.stat().st_size for path in checkpoints(run)[0].iterdir())
    ballast = fill(disk, leaving=(run / "model.safetensors").stat().st_size + size // 2)
    command.send(signal.SIGCONT)
    line = command.refused(f"cannot write {run}/checkpoints/", "No space left on device", "make room")
    expect(not list(run.rglob("*.part")), "unfinished files are left behind")
    expect(all(map(whole, checkpoints(run))) and checkpoints(run), "an earlier checkpoint is damaged")
    ballast.unlink()
    return f'exit code 2, "{short(line, run)}"; earlier checkpoints whole; with free space {context.finish(run)}'


def full_metrics(context: DrillContext, run: Path) -> str:
    """The disk is filled to the last byte between two checkpoints."""
    disk = context.disk(run)
    run = disk / "run"
    command = context.frozen(run, lambda: len(checkpoints(run)) == 1 and not unfinished(run), "often")
    ballast = fill(disk, leaving=0)
    command.send(signal.SIGCONT)
    line = command.refused(f"cannot write {run}/metrics.jsonl", "No space left on device", "make room")
    torn = not (run / "metrics.jsonl").read_text().endswith("\n")
    expect(all(map(whole, checkpoints(run))) and checkpoints(run), "an earlier checkpoint is damaged")
    ballast.unlink()
    half = ", half a row written" if torn else ""
    end = context.finish(run, "often")
    return f'exit code 2, "{short(line, run)}"{half}; earlier checkpoints whole; with free space {end}'


def file_size_limit(context: DrillContext, run: Path) -> str:
    """After the first checkpoint files are limited to a size between the model file's and a checkpoint's."""
    size = 300_000
    line = context.start(run, before=FILE_SIZE_LIMIT.format(size=size)).refused(
        f"cannot write {run}/checkpoints/", "File too large", "make room"
    )
    expect([path.name for path in checkpoints(run)] == [f"{640:012d}"], f"checkpoints: {checkpoints(run)}")
    expect(whole(checkpoints(run)[0]), "the earlier checkpoint is damaged")
    expect(not list(run.rglob("*.part")), "unfinished files are left behind")
    large = sum(path.stat().st_size for path in checkpoints(run)[0].iterdir())
    expect((run / "model.safetensors").stat().st_size < size < large, "the limit is not between the two sizes")
    return f'exit code 2, "{short(line, run)}"; earlier checkpoint whole; without the limit {context.finish(run)}'


def removed(context: DrillContext, run: Path) -> str:
    """The folder is deleted between two checkpoints, and again while one is written."""
    happened = []
    for name, moment in (
        ("between", lambda place: len(checkpoints(place)) > 1 and not unfinished(place)),
        ("while writing", lambda place: len(checkpoints(place)) > 1 and unfinished(place)),
    ):
        place = run.with_name(f"{run.name}-{name[0]}")
        command = context.frozen(place, lambda place=place, moment=moment: moment(place))
        shutil.rmtree(place / "checkpoints")
        command.send(signal.SIGCONT)
        if command.wait() == 0:
            happened.append(f"{name}: training went on and created it again, {context.same(place)}")
        else:
            line = command.refused("cannot write", "checkpoints")
            happened.append(f'{name}: exit code 2, "{short(line, place)}", {context.finish(place)}')
    return "; ".join(happened)


def replaced(context: DrillContext, run: Path) -> str:
    """The folder is moved away and a file takes its name; then it is put back."""
    command = context.frozen(run, lambda: len(checkpoints(run)) > 1 and not unfinished(run))
    folder, away = run / "checkpoints", run.with_name(f"{run.name}-away")
    folder.rename(away)
    folder.write_text("")
    command.send(signal.SIGCONT)
    line = command.refused("cannot write", "checkpoints")
    context.start(run).refused("cannot write", "checkpoints")
    folder.unlink()
    away.rename(folder)
    return f'exit code 2, "{short(line, run)}", and again for the same command; put back, {context.finish(run)}'


def read_only(context: DrillContext, run: Path) -> str:
    """The folder is mounted read-only over itself while a checkpoint is written."""
    run = context.disk(run) / "run"
    command = context.frozen(run, lambda: checkpoints(run) and unfinished(run))
    folder = str(run / "checkpoints")
    subprocess.run(["mount", "--bind", folder, folder], check=True)
    subprocess.run(["mount", "-o", "remount,bind,ro", folder], check=True)
    try:
        command.send(signal.SIGCONT)
        line = command.refused("cannot write", "Read-only file system")
        context.start(run).refused("cannot write", "Read-only file system")
    finally:
        subprocess.run(["umount", folder], check=True)
    return f'exit code 2, "{short(line, run)}", and again for the same command; writable, {context.finish(run)}'


def flipped_checkpoint(context: DrillContext, run: Path) -> str:
    """A bit of the newest checkpoint is flipped, in each of its files in turn; the run is killed in between."""
    files = ("__0_0.distcp", "state.json", ".metadata", "checksums.json")[: 1 if context.quick else 4]
    last, expected = 0, (0, "")

    def further() -> bool:
        return len(checkpoints(run)) > 1 and int(checkpoints(run)[-1].name) > last

    for name in (*files, ""):
        command = context.start(run)
        if name:
            expect(command.until(further), f"the run ended too early: {command.err}")
            command.send(signal.SIGKILL)
        else:
            command.finished()
        command.wait()
        if expected[0]:
            named = re.search(r"checkpoint \S*/(\d+) is damaged \((.*)\); using the one before", command.out)
            expect(named, f"no damage is named: {command.out}")
            expect(command.resumed_from == expected[0], f"resumed from {command.resumed_from}, not from {expected[0]}")
            assert named
            expect(expected[1] in ("checksums.json", named[2].split()[0]), f"{named[0]}, but {expected[1]} is")
        if name:
            before, damaged = checkpoints(run)[-2:]
            last, expected = int(damaged.name), (int(before.name), name)
            flip(damaged / name, (damaged / name).stat().st_size // 2)
            expect(not whole(damaged), f"a flipped bit in {name} is not noticed")
    return f"damage named after each of {len(files)} flips, and the checkpoint before used; {context.same(run)}"


def flipped_latents(context: DrillContext, run: Path) -> str:
    """A bit of a latent in the encoded cache is flipped."""
    unbroken = context.reference("latents")
    for part in PARTS[1:]:
        shutil.copytree(unbroken.with_name(unbroken.name + part), run.with_name(run.name + part))
    (shard,) = run.with_name(f"{run.name}-latents").glob("*.moments.npy")
    row, array = 321, np.load(shard)
    flip(shard, shard.stat().st_size - array.nbytes + row * array[0].nbytes + 5)
    line = context.start(run, "latents").refused(shard.name, f"row {row}")
    named = re.search(r"delete (\S+)", line)
    assert named
    shard.with_name(named[1]).unlink()
    return f'exit code 2, "{short(line, run)}"; after that, {context.finish(run, "latents")}'
