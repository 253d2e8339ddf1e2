"""Failure drills: everything that ends a training run in practice, done to real runs.

Each drill starts ``ditlab train`` in processes of its own in a temporary folder, injects a failure, runs the same command
again, and compares the result bit by bit with a run that was not disturbed: weights, EMA, optimiser, meters, metrics,
sample images and model file.

    python benchmarks/drills.py --page docs/reliability.md # all drills, a quarter of an hour (`make drills`)
    python benchmarks/drills.py --quick --json rows.json   # fewer kills, commands forked from a process with the imports
    python benchmarks/drills.py --only "every failure"     # drills with these words in their name

Full and read-only disks are real ones, mounted in a namespace of their own (``unshare``). Where the system does not allow
that, their rows say so. Linux only.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from reliability import disk, kills, process
from reliability.context import DrillContext

ROOT = Path(__file__).resolve().parent.parent
MARKS = ("<!-- drills -->", "<!-- end of drills -->")


@dataclass(frozen=True)
class Drill:
    """A row to be: its name, what is done, the function that does it, and whether it has to mount a file system."""

    name: str
    done: str
    function: Callable[[DrillContext, Path], str]
    mounts: bool = False


DRILLS = (
    Drill("random kills", "SIGKILL at random moments: any time, while training, in a checkpoint", kills.random_kills),
    Drill(
        "kills at renames",
        "autoencoder, latents and network: SIGKILL before or after random renames, and at random times",
        kills.kills_at_renames,
    ),
    Drill("signals", "SIGINT while training; SIGTERM while training and in a checkpoint", kills.signals),
    Drill("every failure", "one run: three kills, a flipped bit, a full disk, then to the end", kills.every_failure),
    Drill("disk full, checkpoint", "the disk fills up, with room for half a checkpoint", disk.full_checkpoint, True),
    Drill("disk full, metrics", "the disk fills up to the last byte between two checkpoints", disk.full_metrics, True),
    Drill("file size limit", "RLIMIT_FSIZE lets the model file pass and no checkpoint", disk.file_size_limit),
    Drill("checkpoints removed", "`checkpoints/` is deleted while training", disk.removed),
    Drill("checkpoints replaced", "`checkpoints/` is moved away and a file takes its name", disk.replaced),
    Drill("checkpoints read-only", "`checkpoints/` is remounted read-only while one is written", disk.read_only, True),
    Drill("flipped bit, checkpoint", "one bit of the newest checkpoint changes on disk", disk.flipped_checkpoint),
    Drill("flipped bit, latents", "one bit of the encoded cache changes on disk", disk.flipped_latents),
    Drill("two at once", "the same command again while it runs", process.two_at_once),
    Drill("clock set back", "`time.time` and `time.time_ns` go back by a day during the run", process.clock),
    Drill("NaN and overflow, at times", "2 losses NaN, 1 infinite, 1 gradient beyond float32", process.nan_at_times),
    Drill("NaN for good", "every loss is NaN from step 40 on", process.nan_for_good),
    Drill("a process hangs", "reading a batch never ends, --train.timeout 6", process.blocked),
    Drill("one of two hangs", "torchrun, a worker gets SIGSTOP, --train.timeout 15", process.stopped_worker),
    Drill("one of two killed", "torchrun --max-restarts 2, a worker gets SIGKILL", process.killed_worker),
)


@dataclass(frozen=True)
class Row:
    """The result of a drill; ``survived`` is None if it could not run here."""

    drill: str
    done: str
    happened: str
    survived: bool | None


def outcome(drill: Drill, future: Future[str] | None) -> Row:
    """The row of a drill that ended; None stands for one that could not run."""
    row = Row(drill.name, drill.done, "not run here: nothing can be mounted", None)
    if future is None:
        return row
    error = future.exception()
    happened = f"{type(error).__name__}: {error}" if error else future.result()
    return replace(row, happened=" ".join(happened.split()), survived=error is None)


def run_drills(folder: Path, quick: bool, mounts: bool, drills: tuple[Drill, ...] = DRILLS) -> Iterator[Row]:
    """Run drills in an empty folder, three at a time; yields rows in order.

    Args:
        folder: for all files.
        quick: fewer kills, shorter runs.
        mounts: whether file systems can be mounted.
        drills: which.
    """
    os.environ |= {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    context = DrillContext(folder, quick, mounts)
    longest = (kills.random_kills, kills.kills_at_renames, process.stopped_worker, process.killed_worker)
    futures = {}
    with ThreadPoolExecutor(3) as pool:
        for drill in sorted(drills, key=lambda drill: drill.function not in longest):
            if mounts or not drill.mounts:
                place = folder / drill.name.replace(" ", "-").replace(",", "") / "run"
                place.parent.mkdir()
                futures[drill.name] = pool.submit(drill.function, context, place)
        try:
            for drill in drills:
                yield outcome(drill, futures.get(drill.name))
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
            context.close()


def markdown(rows: list[Row]) -> str:
    """The table."""
    lines = ["| drill | what was done | what happened | survived |", "|---|---|---|---|"]
    words = {True: "yes", False: "NO", None: "-"}
    lines += [f"| {row.drill} | {row.done} | {row.happened} | {words[row.survived]} |" for row in rows]
    return "\n".join(lines)


def _mounting_command() -> list[str]:
    """The prefix with which a command can mount file systems that only its processes see; empty if there is none."""
    for command in (["unshare", "-m"], ["unshare", "-rm"]):
        with tempfile.TemporaryDirectory() as folder:
            probe = [*command, "mount", "-t", "tmpfs", "tmpfs", folder]
            if shutil.which("unshare") and not subprocess.run(probe, check=False, capture_output=True).returncode:
                return command
    return []


@dataclass(frozen=True)
class Options:
    """Run failure drills and print a table of their results."""

    quick: bool = False
    """Fewer kills and shorter runs: about two minutes."""
    only: str = ""
    """Run the drills with these words in their name."""
    json: Path | None = None
    """Write the rows to a file."""
    page: Path | None = None
    """Write the table between the marks of a page."""


def main() -> None:
    """Run the drills and print the table; exit code 1 if something was lost."""
    import tyro  # here, since forked processes import this file

    options = tyro.cli(Options, description=__doc__)
    inside = os.environ.pop("DRILLS_MAY_MOUNT", "")
    if not inside and (command := _mounting_command()):
        os.environ["DRILLS_MAY_MOUNT"] = "yes"
        os.execvp(command[0], [*command, sys.executable, __file__, *sys.argv[1:]])
    drills = tuple(drill for drill in DRILLS if options.only in drill.name)
    if not drills:
        raise SystemExit(f"--only {options.only}: no such drill; known: {', '.join(drill.name for drill in DRILLS)}")
    rows = []
    with tempfile.TemporaryDirectory(prefix="drills-") as folder:
        for row in run_drills(Path(folder), options.quick, bool(inside), drills):
            print(f"{row.drill}: {row.happened}", file=sys.stderr, flush=True)
            rows.append(row)
    table = markdown(rows)
    print(table)
    if options.json:
        options.json.write_text(json.dumps([asdict(row) for row in rows], indent=2) + "\n")
    if options.page:
        head, _, rest = options.page.read_text().partition(MARKS[0])
        options.page.write_text(f"{head}{MARKS[0]}\n{table}\n{MARKS[1]}{rest.partition(MARKS[1])[2]}")
    raise SystemExit(any(row.survived is False for row in rows))


if __name__ == "__main__":
    main()
