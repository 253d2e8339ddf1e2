"""Where drills run: commands with their flags, small disks, and the undisturbed runs to compare with."""

from __future__ import annotations

import itertools
import shutil
import subprocess
import threading
import time
from collections import defaultdict
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

from .command import Command, Failed, expect
from .contents import newest, same
from .forking import fork_context

FLAGS = {
    "model.depth": 2, "model.width": 32, "model.heads": 2, "train.batch": 32, "train.precision": "fp32",
    "train.images": 11_200, "train.log": 320, "train.checkpoint": 640, "train.samples": 5600,
    "sample-images": 4, "sample.steps": 2,
}  # fmt: skip
QUICK = {**FLAGS, "train.images": 3200, "train.samples": 1600}
SMALL = {**FLAGS, "model.width": 16, "train.images": 1280, "train.checkpoint": 160, "train.samples": 1280}
OFTEN = {"train.log": 32, "train.checkpoint": 1600, "train.images": 3200, "train.samples": 1600}
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
    autoencoder_train=TrainConfig(images=160, batch=16, lr=4e-3, ema=0.9, log=80, checkpoint=80, samples=160),
    model=DiTConfig(depth=1, width=16, heads=2, patch=2),
    diffusion=DiffusionConfig(schedule="rectified-flow", target="velocity", learned_variance=False),
    train=TrainConfig(images=1280, batch=32, lr=1e-3, log=160, checkpoint=160, samples=1280),
    sample=SampleConfig(sampler="euler", steps=2),
    sample_images=4,
)
'''


class DrillContext:
    """Where drills run, and the undisturbed runs they are compared with.

    Args:
        folder: an empty folder for all files.
        quick: fewer kills, shorter runs, processes forked from one that has the imports.
        mounts: whether file systems can be mounted.
    """

    def __init__(self, folder: Path, quick: bool, mounts: bool):
        self.folder, self.quick, self.mounts = folder, quick, mounts
        recipe = folder / "latents.py"
        recipe.write_text(KL_RECIPE)
        flags = QUICK if quick else FLAGS
        # Kinds of runs: recipe, launcher, flags.
        self.kinds: dict[str, tuple[str, tuple[str, ...], dict[str, object]]] = {
            "digits": ("digits", (), flags),
            "small": ("digits", (), SMALL),
            "often": ("digits", (), {**flags, **OFTEN}),
            "pair": ("digits", TORCHRUN, flags),
            "latents": (str(recipe), (), {}),
        }
        self._fork = fork_context() if quick else None
        self._numbers = itertools.count()
        self._started: list[Command] = []
        self._disks: list[Path] = []
        self._locks: defaultdict[str, threading.Lock] = defaultdict(threading.Lock)
        self._unbroken: dict[str, float] = {}

    def start(self, run: Path, kind: str = "digits", before: str = "", restarts: int = 0, **flags: object) -> Command:
        """Start ``ditlab train`` into a run folder.

        Args:
            run: the folder.
            kind: of run, a key of ``kinds``.
            before: Python code that the process runs first.
            restarts: of torchrun.
            flags: written train_log for ``--train.log``.
        """
        recipe, launcher, given = self.kinds[kind]
        given = {**given, **{name.replace("_", ".", 1).replace("_", "-"): value for name, value in flags.items()}}
        words = [word for name, value in given.items() for word in (f"--{name}", str(value))]
        if restarts:
            launcher = (*launcher, "--max-restarts", str(restarts))
        log = self.folder / f"command-{next(self._numbers)}"
        fork = None if launcher else self._fork
        command = Command(["train", recipe, *words, "--out", str(run)], log, before, launcher, fork)
        self._started.append(command)
        return command

    def frozen(self, run: Path, condition: Callable[[], object], kind: str = "digits") -> Command:
        """A command stopped by SIGSTOP at a moment when a condition holds before its end; SIGCONT continues it."""
        last = run / "checkpoints" / f"{self.kinds[kind][2]['train.images']:012d}"
        for _ in range(20):
            command = self.start(run, kind)
            if command.freeze(lambda: condition() and not last.exists()):
                return command
            command.finished()  # the moment was too short to be noticed
            shutil.rmtree(run)
        raise Failed("a run never reached the moment at which it was to be disturbed")

    def disk(self, place: Path) -> Path:
        """Mount a small disk."""
        place.mkdir()
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=16m", "tmpfs", str(place)], check=True)
        self._disks.append(place)
        return place

    def reference(self, kind: str = "digits") -> Path:
        """The undisturbed run of a kind, made when it is first needed."""
        run = self.folder / f"unbroken-{kind}"
        with self._locks[kind]:
            if kind not in self._unbroken:
                began = time.monotonic()
                self.start(run, kind).finished()
                self._unbroken[kind] = time.monotonic() - began
        return run

    def seconds(self, kind: str = "digits") -> float:
        """The time an undisturbed run takes."""
        self.reference(kind)
        return self._unbroken[kind]

    def same(self, run: Path, kind: str = "digits") -> str:
        """Compare a run with the undisturbed one, bit by bit."""
        unbroken = self.reference(kind)
        if self._fork is None:
            return same(run, unbroken)
        with ProcessPoolExecutor(1, self._fork) as pool:  # it has imported torch
            return pool.submit(same, run, unbroken).result()

    def finish(self, run: Path, kind: str = "digits", **flags: object) -> str:
        """Run the same command to the end: from the newest whole checkpoint, to the same bits."""
        last = newest(run)
        again = self.start(run, kind, **flags)  # type: ignore[arg-type]
        again.finished()
        expect(again.resumed_from == last, f"resumed from {again.resumed_from}, newest whole checkpoint: {last}")
        where = "started from the beginning" if last is None else f"resumed from {last:,}"
        return f"the same command {where}; {self.same(run, kind)}"

    def close(self) -> None:
        """Kill what still runs, unmount disks."""
        for command in self._started:
            command.kill()
        for disk in self._disks:
            subprocess.run(["umount", "--lazy", str(disk)], check=True)


def short(line: str, run: Path) -> str:
    """A message without the temporary folder."""
    return line.removeprefix("ditlab: ").replace(str(run), "RUN")
