"""The failure drills: everything that ends a training run in real life, done to a real one.

Each drill starts ``ditlab train`` in processes of its own in a temporary folder, does the harm, gives the same command
again, and compares what is there in the end with a run nobody touched: weights, average, optimiser, meters, metrics,
pictures and model file, bit by bit.

    python benchmarks/drills.py                            # ten minutes or so; the table of docs/reliability.md
    python benchmarks/drills.py --page docs/reliability.md # puts it there
    python benchmarks/drills.py --quick --json rows.json   # fewer kills, commands forked off a process that has the imports

Disks that fill up and folders that turn read-only are real ones, mounted where nobody else sees them (``unshare``). Where
the system does not allow that, their rows say so. Linux only.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
import multiprocessing
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from multiprocessing.context import ForkServerContext
from pathlib import Path

import numpy as np
import tyro

ROOT = Path(__file__).resolve().parent.parent
FLAGS = {
    "model.depth": 2, "model.width": 32, "model.heads": 2, "train.batch": 32, "train.precision": "fp32",
    "train.images": 11_200, "train.log": 320, "train.checkpoint": 640, "train.samples": 5600,
    "sample-images": 4, "sample.steps": 2,
}  # fmt: skip
CLOCK = ("images_per_second", "seconds", "memory_gib", "mfu")  # of a row of metrics, what differs from run to run
HUNG = 3  # exit code
MARKS = ("<!-- drills -->", "<!-- end of drills -->")
TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")

KL_RECIPE = '''"""Digits in latents: 8x8 to 4x4 with two channels."""

from ditlab.data import DataConfig
from ditlab.diffusion import DiffusionConfig
from ditlab.encoders import AutoencoderConfig
from ditlab.models import DiTConfig
from ditlab.recipes import Recipe
from ditlab.pipelines import SampleConfig
from ditlab.train import TrainConfig

recipe = Recipe(
    name="latents",
    data=DataConfig(source="digits", limit=600),
    autoencoder=AutoencoderConfig(kind="kl", latent_channels=2, widths=(8, 16), kl_weight=1e-3),
    autoencoder_train=TrainConfig(images=640, batch=32, lr=4e-3, ema=0.9, log=320, checkpoint=640, samples=640),
    model=DiTConfig(depth=1, width=16, heads=2, patch=2),
    diffusion=DiffusionConfig(schedule="rectified-flow", target="velocity", learned_variance=False),
    train=TrainConfig(images=1280, batch=32, lr=1e-3, log=160, checkpoint=320, samples=1280),
    sample=SampleConfig(sampler="euler", steps=2),
    sample_images=4,
)
'''

# What is done to a process from inside, before it becomes the command.
BAD_LOSSES = """
from ditlab.train.tasks import DiffusionObjective
losses, step = DiffusionObjective.losses, -1
def bad(self, batch, draws):
    global step
    step += 1
    return losses(self, batch, draws) * float(({factor})(step))
DiffusionObjective.losses = bad
"""
BLOCKED = """
import threading
from ditlab.train.tasks import DiffusionObjective
read, left = DiffusionObjective.read, 45
def blocked(self, indices, flips):
    global left
    left -= 1
    if not left:
        threading.Event().wait()
    return read(self, indices, flips)
DiffusionObjective.read = blocked
"""
SET_BACK = """
import os, time
clock, clock_ns, asked, told = time.time, time.time_ns, [0, 0], os.open({told!r}, os.O_WRONLY | os.O_CREAT)
def back():
    late = os.path.isdir({when!r})
    asked[late] += 1
    os.pwrite(told, b"%12d %12d" % tuple(asked), 0)
    return 86400 * late
time.time = lambda: clock() - back()
time.time_ns = lambda: clock_ns() - back() * 10**9
"""


class Lost(Exception):  # noqa: N818 - what a drill finds
    """Something of a run was lost, or not said."""


def expect(true: object, what: str) -> None:
    """Raise Lost where something does not hold."""
    if not true:
        raise Lost(what)


# Commands ------------------------------------------------------------------------------------------------------------


def _become(words: list[str], log: Path, before: str) -> None:
    """The command in a process forked off one that has the imports."""
    for ending, number in ((".out", 1), (".err", 2)):
        os.dup2(os.open(log.with_suffix(ending), os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
    exec(before, {})
    from ditlab.cli.main import run

    sys.argv = ["ditlab", *words]
    run()


class Command:
    """A ditlab command in a process of its own.

    Args:
        words: after ``ditlab``.
        log: its output goes to log.out and log.err.
        before: Python run in the process first.
        launcher: starts it: arguments of python before ``-m ditlab``.
        warm: makes processes that have the imports; without it python is started anew.
    """

    def __init__(
        self, words: list[str], log: Path, before: str, launcher: tuple[str, ...], warm: ForkServerContext | None
    ):
        self.log = log
        for ending in (".out", ".err"):  # it may be killed before it opens them
            log.with_suffix(ending).touch()
        if warm:
            forked = warm.Process(target=_become, args=(words, log, before))
            forked.start()
            self._code, pid = lambda: forked.exitcode, forked.pid
        else:
            head = (
                ("-c", f"{before}\nfrom ditlab.cli.main import run\nrun()") if before else (*launcher, "-m", "ditlab")
            )
            with log.with_suffix(".out").open("w") as out, log.with_suffix(".err").open("w") as err:
                started = subprocess.Popen([sys.executable, *head, *words], stdout=out, stderr=err)
            self._code, pid = started.poll, started.pid
        assert pid is not None
        self.pid = pid

    @property
    def code(self) -> int | None:
        """Exit code, negative for a signal; None while it runs."""
        return self._code()

    def wait(self, seconds: float = 300) -> int:
        """Its exit code, once it ended."""
        self.until(lambda: False, seconds)
        code = self.code
        assert code is not None
        return code

    def until(self, true: Callable[[], object], seconds: float = 300) -> bool:
        """Wait for something to come true; False where the process ended first."""
        end = time.monotonic() + seconds
        while not true():
            if self.code is not None:
                return bool(true())
            if time.monotonic() > end:
                self.send(signal.SIGKILL)
                raise Lost(f"nothing happened for {seconds:.0f} s: {self.out[-300:]} {self.err[-300:]}")
            time.sleep(0.001)
        return True

    def pause(self, seconds: float) -> None:
        """Let it run for a while."""
        end = time.monotonic() + seconds
        self.until(lambda: time.monotonic() > end)

    def send(self, number: signal.Signals) -> None:
        """A signal."""
        os.kill(self.pid, number)

    def freeze(self, when: Callable[[], object]) -> bool:
        """Stop the process at a moment when something is true; False where the process ended first."""
        while self.until(when) and self.code is None:
            self.send(signal.SIGSTOP)
            while _state(self.pid) not in "TZ":
                time.sleep(0.0005)
            if when():
                return self.code is None
            self.send(signal.SIGCONT)
        return False

    def kill(self) -> None:
        """End it, and torchrun's workers, where it still runs."""
        with contextlib.suppress(OSError):  # it ends just now
            for pid in () if self.code is not None else (self.pid, *_children(self.pid)):
                os.kill(pid, signal.SIGKILL)

    @property
    def out(self) -> str:
        """What it said."""
        return self.log.with_suffix(".out").read_text()

    @property
    def err(self) -> str:
        """What it complained of."""
        return self.log.with_suffix(".err").read_text()

    @property
    def going_on(self) -> int | None:
        """Images of the checkpoint it said it goes on from."""
        said = re.search(r"^going on from ([\d,]+) of", self.out, re.MULTILINE)
        return int(said[1].replace(",", "")) if said else None

    def refused(self, *words: str, code: int = 2) -> str:
        """Its one line, after it ended with a code, which has words in it."""
        expect(self.wait() == code, f"exit code {self.code}, not {code}: {self.err[-500:]}")
        expect(self.err.startswith("ditlab: ") and self.err.count("\n") == 1, f"not one line: {self.err[-500:]}")
        for word in words:
            expect(word in self.err, f"{word!r} is not in: {self.err}")
        return self.err.removeprefix("ditlab: ").strip()

    def finished(self) -> None:
        """Wait for its end, which has to be a good one."""
        expect(self.wait() == 0, f"exit code {self.code}: {self.err[-500:]}")


def _state(pid: int) -> str:
    """One letter, as ps shows it: T is stopped, Z has ended."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return "Z"


def _children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def worker(launcher: Command, rank: int) -> int:
    """The process number of one of torchrun's workers."""
    for pid in _children(launcher.pid):
        if f"\0RANK={rank}\0" in Path(f"/proc/{pid}/environ").read_text():
            return pid
    raise Lost(f"torchrun has no worker {rank}")


# What a run folder holds ---------------------------------------------------------------------------------------------


def checkpoints(run: Path) -> list[Path]:
    """Folders under their final name, oldest first."""
    return sorted((run / "checkpoints").glob("[0-9]*"))


def unfinished(run: Path) -> list[Path]:
    """What is being written, or was when the process was killed."""
    return list((run / "checkpoints").glob(".*[0-9].part"))


def whole(checkpoint: Path) -> bool:
    """Whether every file of a checkpoint is there, as it was written."""
    try:
        sums = json.loads((checkpoint / "checksums.json").read_text())
        found = {name: hashlib.sha256((checkpoint / name).read_bytes()).hexdigest() for name in sums}
    except (OSError, ValueError):
        return False
    return found == sums and {"state.json", ".metadata"} < set(sums)


def newest(run: Path) -> int | None:
    """Images of the newest whole checkpoint."""
    return max((int(path.name) for path in checkpoints(run) if whole(path)), default=None)


def content(run: Path) -> dict[str, bytes]:
    """Everything a run ends with, by name: metrics without what the clock says, tensors, states, pictures, the model."""
    import torch
    import torch.distributed.checkpoint as dcp

    found = {}
    for line in (run / "metrics.jsonl").read_text().splitlines():
        row = {name: value for name, value in json.loads(line).items() if name not in CLOCK}
        found[f"metrics at {row['images']}"] = json.dumps(row).encode()
    for path in checkpoints(run):
        reader = dcp.FileSystemReader(path)
        stored = reader.read_metadata().state_dict_metadata
        tensors = {name: torch.empty(item.size, dtype=item.properties.dtype) for name, item in stored.items()}  # type: ignore[union-attr]
        dcp.load(tensors, storage_reader=reader, no_dist=True)
        for name, tensor in tensors.items():
            found[f"{path.name} {name}"] = tensor.numpy().tobytes()
        found[f"{path.name} state"] = (path / "state.json").read_bytes()
    for path in [*run.glob("samples/*"), *run.glob("*.safetensors")]:
        found[str(path.relative_to(run))] = path.read_bytes()
    for path in run.rglob("*.part"):
        found[f"left behind: {path.name}"] = b""
    return found


def same(run: Path, unbroken: Path) -> str:
    """That two runs ended with the same, to the bit."""
    one, other = content(run), content(unbroken)
    expect(one.keys() == other.keys(), f"only one of them has {sorted(one.keys() ^ other.keys())[:5]}")
    bits = 0
    for name, data in one.items():
        expect(len(data) == len(other[name]), f"{name} has another size")
        different = np.frombuffer(data, np.uint8) ^ np.frombuffer(other[name], np.uint8)
        wrong = int(np.bitwise_count(different).sum()) if hasattr(np, "bitwise_count") else int(different.any())
        expect(not wrong, f"{name} differs in {wrong} bits")
        bits += 8 * len(data)
    return f"0 of {bits:,} bits differ"


def flip(path: Path, at: int) -> None:
    """One bit of one byte becomes another."""
    with path.open("r+b") as file:
        file.seek(at)
        byte = file.read(1)[0]
        file.seek(at)
        file.write(bytes([byte ^ 0x10]))


def fill(folder: Path, leaving: int) -> Path:
    """Write a file until the disk is full but for some bytes."""
    ballast = folder / "ballast"
    with ballast.open("wb", buffering=0) as file:
        try:
            while file.write(bytes(4096)):
                pass
        except OSError:
            file.truncate(max(0, file.tell() - leaving))
    return ballast


# The drills ----------------------------------------------------------------------------------------------------------


class Bench:
    """Where drills are done, and the unbroken runs they are compared with.

    Args:
        folder: everything happens in it.
        quick: fewer kills, shorter runs, warm processes.
        mounts: whether file systems can be mounted.

    Attributes:
        seconds: an unbroken run took.
    """

    def __init__(self, folder: Path, quick: bool, mounts: bool):
        self.folder, self.quick, self.mounts = folder, quick, mounts
        self.flags = {**FLAGS, "train.images": 3200, "train.samples": 1600} if quick else FLAGS
        self.warm: ForkServerContext | None = None
        if quick:
            self.warm = multiprocessing.get_context("forkserver")
            self.warm.set_forkserver_preload(
                ["ditlab.recipes", "torch._dynamo", "matplotlib.pyplot", "sklearn.datasets", "diffusers.models"]
            )
        self.seconds = 0.0
        self._numbers = itertools.count()
        self._started: list[Command] = []
        self._disks: list[Path] = []
        self._pool = ThreadPoolExecutor(3)
        self._unbroken: dict[str, Future[Path]] = {}

    def run(self, function: Callable[..., object], *arguments: object) -> Future:
        """Begin something beside the rest."""
        return self._pool.submit(function, *arguments)

    def start(
        self,
        run: Path,
        *,
        before: str = "",
        launcher: tuple[str, ...] = (),
        recipe: str = "digits",
        **flags: object,
    ) -> Command:
        """``ditlab train`` into a run folder; flags are written train_log for --train.log."""
        given = self.flags if recipe == "digits" else {}
        given = {**given, **{name.replace("_", ".", 1): value for name, value in flags.items()}}
        words = [word for name, value in given.items() for word in (f"--{name}", str(value))]
        log = self.folder / f"command-{next(self._numbers)}"
        warm = None if launcher else self.warm
        command = Command(["train", recipe, *words, "--out", str(run)], log, before, launcher, warm)
        self._started.append(command)
        return command

    def frozen(self, run: Path, when: Callable[[], object], **settings: object) -> Command:
        """A command stopped by SIGSTOP at a moment when something is true; SIGCONT lets it go on."""
        for _ in range(20):
            command = self.start(run, **settings)  # type: ignore[arg-type]
            if command.freeze(when):
                return command
            command.finished()  # the moment was too short to be seen
            shutil.rmtree(run)
        raise Lost("a run never came to the moment it was to be harmed")

    def close(self) -> None:
        """End what still runs."""
        for command in self._started:
            command.kill()
        self._pool.shutdown(wait=True, cancel_futures=True)
        for disk in self._disks:
            subprocess.run(["umount", "--lazy", str(disk)], check=True)

    def disk(self, place: Path) -> Path:
        """A small disk, mounted."""
        place.mkdir()
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=16m", "tmpfs", str(place)], check=True)
        self._disks.append(place)
        return place

    def unbroken(self, name: str, **settings: object) -> None:
        """Begin a run that nobody touches."""

        def make() -> Path:
            run, began = self.folder / f"unbroken-{name}", time.monotonic()
            self.start(run, **settings).finished()  # type: ignore[arg-type]
            self.seconds = time.monotonic() - began
            return run

        self._unbroken[name] = self.run(make)

    def reference(self, name: str = "one") -> Path:
        """The unbroken run of a name, once it ended."""
        return self._unbroken[name].result()

    def same(self, run: Path, name: str = "one") -> str:
        """That a run ended like the unbroken one, to the bit."""
        return same(run, self.reference(name))

    def finish(self, run: Path, name: str = "one", **settings: object) -> str:
        """The same command again, to its end: from the newest whole checkpoint, to the same bits."""
        last = newest(run)
        again = self.start(run, **settings)  # type: ignore[arg-type]
        again.finished()
        expect(again.going_on == last, f"it went on from {again.going_on}, the newest whole checkpoint was {last}")
        where = "from the beginning" if last is None else f"on from {last:,}"
        return f"the same command went {where}; {self.same(run, name)}"


def _strike(command: Command, run: Path, kind: str, chance: random.Random, seconds: float) -> None:
    """SIGKILL at a random moment, if the command has not ended by then."""
    rows, began = run / "metrics.jsonl", time.time_ns()
    if kind == "at any time":
        command.pause(chance.uniform(0, seconds))
    elif kind == "writing":
        for _ in range(chance.randint(0, 2)):  # that many checkpoints may become whole
            command.until(lambda: unfinished(run))
            command.until(lambda: not unfinished(run))
        command.until(lambda: unfinished(run))
        time.sleep(chance.uniform(0, 0.02))
    elif command.until(lambda: rows.exists() and rows.stat().st_mtime_ns > began):  # the rows before, written anew
        size = rows.stat().st_size
        command.until(lambda: rows.stat().st_size > size)
        command.pause(chance.uniform(0, 0.5))
    if command.code is None:
        command.send(signal.SIGKILL)


def kills(bench: Bench, run: Path) -> str:
    """SIGKILL at any time since the start, while training, and while a checkpoint is being written, in turn."""
    wanted, chance, kinds = (
        4 if bench.quick else 50,
        random.Random(1),
        itertools.cycle(("training", "writing", "at any time")),
    )
    killed = writing = without = runs = 0
    bits = ""
    while killed < wanted:  # a run may end before it was killed often enough
        place, last, runs = run.with_name(f"{run.name}-{runs}"), None, runs + 1
        while True:
            command = bench.start(place)
            if killed < wanted:
                _strike(command, place, next(kinds), chance, bench.seconds)
            code = command.wait()
            silent = code and command.going_on is None  # was killed before it could say
            expect(silent or command.going_on == last, f"it went on from {command.going_on}, not from {last}")
            if code == 0:
                break
            expect(code == -signal.SIGKILL, f"exit code {code}: {command.err[-500:]}")
            before, last = last, newest(place)
            expect((last or 0) >= (before or 0), f"checkpoint {before} is gone")
            killed, writing, without = killed + 1, writing + bool(unfinished(place)), without + (last is None)
        bits = bench.same(place)
    return (
        f"{killed} kills, {writing} in the middle of a checkpoint, {without} before there was one; every restart went on "
        f"from the newest whole checkpoint; {runs} run{'s' * (runs > 1)} to the end, {bits}"
    )


def asked_to_stop(bench: Bench, run: Path) -> str:
    """SIGTERM while training, and while a checkpoint is being written."""
    happened = []
    for moment in (checkpoints,) if bench.quick else (checkpoints, unfinished):
        command = bench.frozen(run, lambda moment=moment: moment(run))
        command.send(signal.SIGTERM)
        command.send(signal.SIGCONT)
        command.finished()
        said = re.search(r"^stopped after ([\d,]+) of .* goes on from there$", command.out, re.MULTILINE)
        expect(said and not command.err, f"it said: {command.out} {command.err}")
        assert said
        images = int(said[1].replace(",", ""))
        expect(newest(run) == images, f"it said {images}, the newest checkpoint is {newest(run)}")
        happened.append(f'exit code 0, "{said[0]}"')
    return f"{', then '.join(happened)}; {bench.finish(run)}"


def full_checkpoint(bench: Bench, run: Path) -> str:
    """A small disk of its own is filled up; what is left takes the model file and half a checkpoint."""
    disk = bench.disk(run)
    run = disk / "run"
    command = bench.frozen(run, lambda: checkpoints(run) and not unfinished(run))
    size = sum(path.stat().st_size for path in checkpoints(run)[0].iterdir())
    ballast = fill(disk, leaving=(run / "model.safetensors").stat().st_size + size // 2)
    command.send(signal.SIGCONT)
    line = command.refused(f"cannot write {run}/checkpoints/", "No space left on device", "make room")
    expect(not list(run.rglob("*.part")), "half-written files are left")
    expect(all(map(whole, checkpoints(run))) and checkpoints(run), "an earlier checkpoint is damaged")
    ballast.unlink()
    return f'exit code 2, "{_short(line, run)}"; earlier checkpoints whole; with room {bench.finish(run)}'


def full_metrics(bench: Bench, run: Path) -> str:
    """The disk is filled to the last byte between two checkpoints."""
    disk = bench.disk(run)
    run = disk / "run"
    often = {"train_log": 32, "train_checkpoint": 1600, "train_images": 3200, "train_samples": 1600}
    command = bench.frozen(run, lambda: checkpoints(run) and not unfinished(run), **often)
    ballast = fill(disk, leaving=0)
    command.send(signal.SIGCONT)
    line = command.refused(f"cannot write {run}/metrics.jsonl", "No space left on device", "make room")
    torn = not (run / "metrics.jsonl").read_text().endswith("\n")
    expect(all(map(whole, checkpoints(run))) and checkpoints(run), "an earlier checkpoint is damaged")
    ballast.unlink()
    end = bench.finish(run, "often", **often)
    half = ", half a row written" if torn else ""
    return f'exit code 2, "{_short(line, run)}"{half}; earlier checkpoints whole; with room {end}'


def removed(bench: Bench, run: Path) -> str:
    """The folder is deleted between two checkpoints, and again while one is being written."""
    happened = []
    for name, moment in (
        ("between", lambda place: len(checkpoints(place)) > 1 and not unfinished(place)),
        ("while writing", lambda place: len(checkpoints(place)) > 1 and unfinished(place)),
    ):
        place = run.with_name(f"{run.name}-{name[0]}")
        command = bench.frozen(place, lambda place=place, moment=moment: moment(place))
        shutil.rmtree(place / "checkpoints")
        command.send(signal.SIGCONT)
        if command.wait() == 0:
            happened.append(f"{name}: it went on and made it anew, {bench.same(place)}")
        else:
            line = command.refused("cannot write", "checkpoints")
            happened.append(f'{name}: exit code 2, "{_short(line, place)}", {bench.finish(place)}')
    return "; ".join(happened)


def replaced(bench: Bench, run: Path) -> str:
    """The folder is moved away and a file has its name, as with a disk that is not mounted; then it is put back."""
    command = bench.frozen(run, lambda: len(checkpoints(run)) > 1 and not unfinished(run))
    there, away = run / "checkpoints", run.with_name(f"{run.name}-away")
    there.rename(away)
    there.write_text("")
    command.send(signal.SIGCONT)
    line = command.refused("cannot write", "checkpoints")
    bench.start(run).refused("cannot write", "checkpoints")
    there.unlink()
    away.rename(there)
    return f'exit code 2, "{_short(line, run)}", and again for the same command; put back, {bench.finish(run)}'


def read_only(bench: Bench, run: Path) -> str:
    """The folder is mounted read-only over itself while a checkpoint is being written."""
    run = bench.disk(run) / "run"
    command = bench.frozen(run, lambda: checkpoints(run) and unfinished(run))
    there = str(run / "checkpoints")
    subprocess.run(["mount", "--bind", there, there], check=True)
    subprocess.run(["mount", "-o", "remount,bind,ro", there], check=True)
    try:
        command.send(signal.SIGCONT)
        line = command.refused("cannot write", "Read-only file system")
        bench.start(run).refused("cannot write", "Read-only file system")
    finally:
        subprocess.run(["umount", there], check=True)
    return f'exit code 2, "{_short(line, run)}", and again for the same command; writable, {bench.finish(run)}'


def flipped_checkpoint(bench: Bench, run: Path) -> str:
    """A bit of the newest checkpoint is flipped, in each of its files in turn; the run is killed in between."""
    files = ("__0_0.distcp", "state.json", ".metadata", "checksums.json")[: 1 if bench.quick else 4]
    last, expected = 0, (0, "")

    def further() -> bool:
        return len(checkpoints(run)) > 1 and int(checkpoints(run)[-1].name) > last

    for name in (*files, ""):
        command = bench.start(run)
        if name:
            expect(command.until(further), f"the run ended too early: {command.err}")
            command.send(signal.SIGKILL)
        else:
            command.finished()
        command.wait()
        if expected[0]:
            named = re.search(r"checkpoint \S*/(\d+) is damaged \((.*)\); using the one before", command.out)
            expect(named, f"no damage is named: {command.out}")
            expect(command.going_on == expected[0], f"it went on from {command.going_on}, not from {expected[0]}")
            assert named
            expect(expected[1] in ("checksums.json", named[2].split()[0]), f"{named[0]}, but {expected[1]} is")
        if name:
            before, damaged = checkpoints(run)[-2:]
            last, expected = int(damaged.name), (int(before.name), name)
            flip(damaged / name, (damaged / name).stat().st_size // 2)
            expect(not whole(damaged), f"a flipped bit in {name} does not show")
    return f"{len(files)} times named, and the checkpoint before used; {bench.same(run)}"


def flipped_latents(bench: Bench, run: Path) -> str:
    """A bit of a latent in the encoded cache is flipped."""
    unbroken = bench.reference("latents")
    for part in ("autoencoder", "latents"):
        shutil.copytree(unbroken.with_name(f"{unbroken.name}-{part}"), run.with_name(f"{run.name}-{part}"))
    (shard,) = run.with_name(f"{run.name}-latents").glob("*.moments.npy")
    row, array = 321, np.load(shard)
    flip(shard, shard.stat().st_size - array.nbytes + row * array[0].nbytes + 5)
    recipe = str(bench.folder / "latents.py")
    command = bench.start(run, recipe=recipe)
    line = command.refused(shard.name, f"row {row}")
    named = re.search(r"delete (\S+)", line)
    assert named
    shard.with_name(named[1]).unlink()
    return f'exit code 2, "{_short(line, run)}"; done so, {bench.finish(run, "latents", recipe=recipe)}'


def two_at_once(bench: Bench, run: Path) -> str:
    """The same command is given a second time while the first one trains."""
    first = bench.frozen(run, lambda: checkpoints(run))
    locked = _written(run)
    line = bench.start(run).refused("another process", "--out")
    expect(locked == _written(run), f"the second one wrote {set(_written(run)) ^ set(locked)}")
    first.send(signal.SIGCONT)
    first.finished()
    return f'the second: exit code 2, "{_short(line, run)}", nothing written; the first ended, {bench.same(run)}'


def clock(bench: Bench, run: Path) -> str:
    """Python's clock goes back by a day when the first checkpoint is there."""
    told = run.with_name("asked.txt")
    when = str(run / "checkpoints" / f"{FLAGS['train.checkpoint']:012d}")
    command = bench.start(run, before=SET_BACK.format(when=when, told=str(told)))
    command.finished()
    early, late = map(int, told.read_text().split())
    expect(early and late, "nobody asked what time it is")
    return f"asked {early} times before and {late} times after; {bench.same(run)}"


def nan_at_times(bench: Bench, run: Path) -> str:
    """NaN losses in steps 3 and 17, an infinite one in step 30, a gradient beyond float32 in step 45."""
    factors = {3: "nan", 17: "nan", 30: "inf", 45: "1e38"}
    before = BAD_LOSSES.format(factor=f"lambda step: {factors}.get(step, 1)")
    bench.start(run, before=before, train_part=32).finished()
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    expect(rows[-1]["skipped"] == len(factors), f"{rows[-1]['skipped']} steps are counted as left out")
    values = [np.frombuffer(data, np.float32) for name, data in content(run).items() if "weights." in name]
    expect(values and all(np.isfinite(value).all() for value in values), "weights are not numbers")
    unbroken = (bench.reference() / "metrics.jsonl").read_text().splitlines()
    loss, other = rows[-1]["loss"], json.loads(unbroken[-1])["loss"]
    expect(abs(loss / other - 1) < 0.25, f"the last loss is {loss}, of the unbroken run {other}")
    return f"{len(factors)} steps left out and counted; all weights finite; last loss {loss:.3f}, unbroken {other:.3f}"


def nan_for_good(bench: Bench, run: Path) -> str:
    """Every loss from step 40 on is NaN."""
    before = BAD_LOSSES.format(factor="lambda step: 'nan' if step >= 40 else 1")
    line = bench.start(run, before=before, train_part=32).refused(
        "20 of them in a row", "--train.lr", "--train.max-grad-norm"
    )
    expect(newest(run) == 40 * 32, f"the newest checkpoint is {newest(run)}, not the last before the NaNs")
    return f'after 20 steps exit code 2, "{_short(line, run)}"; without the fault {bench.finish(run, train_part=32)}'


def blocked(bench: Bench, run: Path) -> str:
    """Reading a batch never ends, --train.timeout 6."""
    line = bench.start(run, before=BLOCKED, train_timeout=6).refused("finished no step", "last checkpoint", code=HUNG)
    traces = (run / "hang-0.txt").read_text()
    expect("in blocked" in traces, f"the place is not in: {traces}")
    return f'exit code {HUNG}, "{_short(line, run)}", and it does; {bench.finish(run, train_timeout=6)}'


def frozen_worker(bench: Bench, run: Path) -> str:
    """Two processes under torchrun, --train.timeout 15; one gets SIGSTOP."""
    happened = []
    for rank in (1,) if bench.quick else (1, 0):
        place, pair = run.with_name(f"{run.name}-{rank}"), {"launcher": TORCHRUN, "train_timeout": 15}
        command = bench.start(place, **pair)  # type: ignore[arg-type]
        expect(command.until(lambda place=place: checkpoints(place)), f"it ended: {command.err[-500:]}")
        frozen, other = worker(command, rank), worker(command, 1 - rank)
        os.kill(frozen, signal.SIGSTOP)
        began = time.monotonic()
        command.until(lambda other=other: _state(other) == "Z", 60)
        seconds = time.monotonic() - began
        if bench.quick:
            os.kill(frozen, signal.SIGKILL)  # torchrun does, after 30 seconds
        expect(command.wait(60) != 0, "torchrun ended as if all were well")
        ended = time.monotonic() - began
        lines = [line for line in command.err.splitlines() if line.startswith("ditlab: ")]
        expect(len(lines) == 1 and f"process {1 - rank}" in lines[0], f"not one line: {command.err[-1500:]}")
        expect("Traceback" not in command.err.split("elastic/multiprocessing")[0], f"a traceback: {command.err[:1500]}")
        happened.append(
            f'{rank} stopped: after {seconds:.0f} s the other said "{_short(lines[0], place)}", after {ended:.0f} s '
            f"torchrun ended{'' if bench.quick else '; ' + bench.finish(place, 'pair', **pair)}"
        )
    return "; ".join(happened)


def killed_worker(bench: Bench, run: Path) -> str:
    """Two processes under torchrun --max-restarts 2; one gets SIGKILL."""
    command = bench.start(run, launcher=(*TORCHRUN, "--max-restarts", "2"))
    expect(command.until(lambda: checkpoints(run)), f"it ended: {command.err[-500:]}")
    os.kill(worker(command, 1), signal.SIGKILL)
    command.finished()
    expect(command.going_on, "it never went on")
    return f"it came back by itself and went on from {command.going_on:,}; {bench.same(run, 'pair')}"


def _written(run: Path) -> dict[str, int]:
    """When each file and folder was written, but for the lock, which anybody may open."""
    return {str(path): path.stat().st_mtime_ns for path in run.rglob("*") if path.name != ".lock"}


def _short(line: str, run: Path) -> str:
    """A message without the temporary folder."""
    return line.removeprefix("ditlab: ").replace(str(run), "RUN")


@dataclass(frozen=True)
class Drill:
    """A row to be: its name, what is done, the function that does it, and whether it needs to mount something."""

    name: str
    done: str
    function: Callable[[Bench, Path], str]
    mounts: bool = False


DRILLS = (
    Drill("killed", "SIGKILL at random moments: at any time, while training, while a checkpoint is written", kills),
    Drill("asked to stop", "SIGTERM", asked_to_stop),
    Drill("disk full, checkpoint", "the disk fills up, with room for half a checkpoint", full_checkpoint, True),
    Drill("disk full, metrics", "the disk fills up to the last byte between two checkpoints", full_metrics, True),
    Drill("checkpoints removed", "`checkpoints/` is deleted while training", removed),
    Drill("checkpoints unwritable", "`checkpoints/` is moved away and a file takes its name", replaced),
    Drill("checkpoints read-only", "`checkpoints/` is remounted read-only while one is written", read_only, True),
    Drill("flipped bit, checkpoint", "one bit of the newest checkpoint changes on disk", flipped_checkpoint),
    Drill("flipped bit, latents", "one bit of the encoded cache changes on disk", flipped_latents),
    Drill("two at once", "the same command again while it runs", two_at_once),
    Drill("clock set back", "`time.time` and `time.time_ns` go back by a day in mid-run", clock),
    Drill("NaN and overflow, at times", "2 losses NaN, 1 infinite, 1 gradient beyond float32", nan_at_times),
    Drill("NaN for good", "every loss is NaN from step 40 on", nan_for_good),
    Drill("a process hangs", "reading a batch never ends, --train.timeout 6", blocked),
    Drill("one of two hangs", "torchrun, a worker gets SIGSTOP, --train.timeout 15", frozen_worker),
    Drill(
        "one of two killed",
        "torchrun --standalone --max-restarts 2, a worker gets SIGKILL",
        killed_worker,
    ),
)


@dataclass(frozen=True)
class Row:
    """What came of a drill; ``survived`` is None where it could not be done here."""

    drill: str
    done: str
    happened: str
    survived: bool | None


def outcome(drill: Drill, future: Future[str] | None) -> Row:
    """The row of a drill that ended, well or not; of None where it could not begin."""
    row = Row(drill.name, drill.done, "not run here: nothing can be mounted", None)
    if future is None:
        return row
    error = future.exception()
    happened = f"{type(error).__name__}: {error}" if error else future.result()
    return replace(row, happened=" ".join(happened.split()), survived=error is None)


def run_drills(folder: Path, quick: bool, mounts: bool, drills: tuple[Drill, ...] = DRILLS) -> Iterator[Row]:
    """Run drills in an empty folder, three at a time; gives rows in order.

    Args:
        folder: where.
        quick: fewer kills, shorter runs.
        mounts: whether file systems can be mounted.
        drills: which.
    """
    os.environ |= {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    bench = Bench(folder, quick, mounts)
    (folder / "latents.py").write_text(KL_RECIPE)
    bench.unbroken("pair", launcher=TORCHRUN)
    bench.unbroken("one")
    bench.unbroken("latents", recipe=str(folder / "latents.py"))
    bench.unbroken("often", train_log=32, train_checkpoint=1600, train_images=3200, train_samples=1600)
    futures = {}
    for drill in sorted(drills, key=lambda drill: drill.function not in (kills, frozen_worker, killed_worker)):
        if mounts or not drill.mounts:
            place = folder / drill.name.replace(" ", "-").replace(",", "") / "run"
            place.parent.mkdir()
            futures[drill.name] = bench.run(drill.function, bench, place)
    try:
        for drill in drills:
            yield outcome(drill, futures.get(drill.name))
    finally:
        bench.close()


def markdown(rows: list[Row]) -> str:
    """The table."""
    lines = ["| drill | what was done | what happened | survived |", "|---|---|---|---|"]
    words = {True: "yes", False: "NO", None: "-"}
    lines += [f"| {row.drill} | {row.done} | {row.happened} | {words[row.survived]} |" for row in rows]
    return "\n".join(lines)


def _can_mount() -> list[str]:
    """The command after which file systems can be mounted, seen by its processes only; empty where there is none."""
    for command in (["unshare", "-m"], ["unshare", "-rm"]):
        with tempfile.TemporaryDirectory() as folder:
            probe = [*command, "mount", "-t", "tmpfs", "tmpfs", folder]
            if shutil.which("unshare") and not subprocess.run(probe, check=False, capture_output=True).returncode:
                return command
    return []


@dataclass(frozen=True)
class Options:
    """Harm a training run in every way that is known and see what is left."""

    quick: bool = False
    """Fewer kills, under two minutes."""
    json: Path | None = None
    """Write the rows to a file."""
    page: Path | None = None
    """Put the table between the marks of a page."""


def main() -> None:
    """Run every drill and print the table; exit code 1 where something was lost."""
    options = tyro.cli(Options, description=__doc__)
    inside = os.environ.pop("DRILLS_MAY_MOUNT", "")
    if not inside and (command := _can_mount()):
        os.environ["DRILLS_MAY_MOUNT"] = "yes"
        os.execvp(command[0], [*command, sys.executable, __file__, *sys.argv[1:]])
    warnings.filterwarnings("ignore", message="torch.distributed is disabled")
    rows = []
    with tempfile.TemporaryDirectory(prefix="drills-") as folder:
        for row in run_drills(Path(folder), options.quick, bool(inside)):
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
