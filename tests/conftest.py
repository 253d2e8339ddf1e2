"""Fixtures of all tests: commands run in this process or in their own, and small runs that are trained once."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import logging
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from filelock import FileLock
from PIL import Image

from ditlab.cli.main import main
from ditlab.errors import UserError

# torch logs hundreds of lines a checkpoint, which pytest would show with every failure.
logging.getLogger("c10d-NullHandler-dcp_logger").addFilter(lambda record: False)

TINY = (
    "--model.depth 2 --model.width 32 --model.heads 2 --train.batch 32 --train.precision fp32 "
    "--sample-images 4 --sample.steps 2"
)
SHORT = "--train.images 640 --train.log 160 --train.checkpoint 320 --train.samples 640"

CLOCK = ("images_per_second", "seconds", "memory_gib", "mfu", "mfu_of_tflops")  # metrics that differ from run to run

# Files of tests that take longest. They start first, so that no worker is left with a long file at the end.
LONGEST = (
    "train/test_parallel.py", "playground/test_browser.py", "encoders/test_encode_processes.py", "cli/test_demo.py",
    "train/test_ways.py", "recipes/test_evaluate.py", "models/test_unet.py", "test_drills.py", "playground/test_hostile.py",
    "recipes/test_inspect_memory.py", "cli/test_evaluate_command.py", "recipes/test_network_choice.py",
)  # fmt: skip

KL_RECIPE = '''"""Digits in latents: 8x8 to 4x4 with two channels."""

from ditlab.data import DataConfig
from ditlab.diffusion import DiffusionConfig
from ditlab.encoders import AutoencoderConfig
from ditlab.models import DiTConfig
from ditlab.recipes import Recipe
from ditlab.pipelines import SampleConfig
from ditlab.train import TrainConfig

recipe = Recipe(
    name="small-latents",
    data=DataConfig(source="digits", limit=600),
    autoencoder=AutoencoderConfig(kind="kl", latent_channels=2, widths=(8, 16), kl_weight=1e-3),
    autoencoder_train=TrainConfig(
        images=3200, batch=32, lr=4e-3, cooldown=0.5, ema=0.9, log=320, checkpoint=640, samples=1600
    ),
    model=DiTConfig(depth=1, width=16, heads=2, patch=2),
    diffusion=DiffusionConfig(schedule="rectified-flow", target="velocity", learned_variance=False),
    train=TrainConfig(images=320, batch=32, lr=1e-3, log=160, checkpoint=160, samples=320),
    sample=SampleConfig(sampler="euler", steps=2),
    sample_images=4,
)
'''


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the longest files first; the rest keeps its order."""
    place = {Path(__file__).parent / name: index for index, name in enumerate(LONGEST)}
    items.sort(key=lambda item: place.get(item.path, len(LONGEST)))


def shared_folder(factory: pytest.TempPathFactory) -> Path:
    """A temporary folder that all workers of a test session share."""
    own = factory.getbasetemp()
    return own.parent if "PYTEST_XDIST_WORKER" in os.environ else own


def made_once(factory: pytest.TempPathFactory, name: str, make: Callable[[Path], None]) -> Path:
    """A folder that the first worker to need it makes, while others wait."""
    folder = shared_folder(factory) / name
    done = folder.with_name(f"{name}.done")
    with FileLock(folder.with_name(f"{name}.lock")):
        if not done.exists():
            folder.mkdir(exist_ok=True)
            make(folder)
            done.touch()
    return folder


@dataclass(frozen=True)
class Ended:
    """Exit code and output of a command."""

    code: int
    out: str
    err: str


def call(*arguments: object) -> Ended:
    """Run a command in this process, as the terminal would."""
    out, err = io.StringIO(), io.StringIO()
    code = 0
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            main([str(argument) for argument in arguments])
        except SystemExit as stop:
            code = int(stop.code or 0)
    return Ended(code, out.getvalue(), err.getvalue())


def hashes(folder: Path) -> dict[str, str]:
    """SHA-256 of every file below a folder, by relative name."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


@pytest.fixture(scope="session", autouse=True)
def _cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """All tests share one cache folder, not the user's: features of real images are computed once."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(shared_folder(tmp_path_factory) / "cache"))
        patch.setenv("HF_DATASETS_CACHE", str(shared_folder(tmp_path_factory) / "tables"))
        yield


@pytest.fixture(scope="session")
def ditlab() -> Callable[..., Ended]:
    """Run a command in this process."""
    return call


@pytest.fixture(scope="session")
def refused() -> Callable[..., str]:
    """Run a command that must end with code 2 and one line that contains the given words; returns the line."""

    def check(arguments: list[object], *words: str) -> str:
        ended = call(*arguments)
        assert ended.code == 2, ended
        assert ended.err.startswith("ditlab: "), ended.err
        assert ended.err.count("\n") == 1, ended.err
        assert ended.err.endswith("\n"), ended.err
        for word in words:
            assert word in ended.err, ended.err
        return ended.err

    return check


@pytest.fixture(scope="session")
def tree() -> Callable[[Path], dict[str, str]]:
    return hashes


@pytest.fixture(scope="session")
def process() -> Callable[..., subprocess.Popen[str]]:
    """Start ``python -m ditlab ARGUMENTS``, or a script, in a new process."""

    def start(*arguments: object, script: str = "", cwd: Path | None = None) -> subprocess.Popen[str]:
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parent.parent)}
        head = ["-c", script] if script else ["-m", "ditlab"]
        return subprocess.Popen(
            [sys.executable, "-W", "error::RuntimeWarning", *head, *map(str, arguments)],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment, cwd=cwd,
        )  # fmt: skip

    return start


@pytest.fixture(scope="session")
def tiny() -> list[str]:
    """Flags that shorten recipe digits, or one like it, to about a second: 20 steps, two checkpoints."""
    return list(f"{TINY} {SHORT}".split())


@pytest.fixture(scope="session")
def digits_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished small run of recipe digits. Tests must not change it: copy it."""

    def make(folder: Path) -> None:
        ended = call("train", "digits", *f"{TINY} {SHORT}".split(), "--out", folder / "digits")
        assert ended.code == 0, ended

    return made_once(tmp_path_factory, "runs", make) / "digits"


@pytest.fixture(scope="session")
def colours_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of a model of prompts, see ``colours``. Tests must not change it: copy it."""

    def make(folder: Path) -> None:
        from colours import run

        run(folder / "colours")

    return made_once(tmp_path_factory, "text", make) / "colours"


@pytest.fixture(scope="session")
def kl_recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A recipe file: digits in latents of an autoencoder trained for them."""
    path = tmp_path_factory.mktemp("recipes") / "small.py"
    path.write_text(KL_RECIPE)
    return path


@pytest.fixture(scope="session")
def kl_run(tmp_path_factory: pytest.TempPathFactory, kl_recipe: Path) -> Path:
    """A finished run of the latent recipe, next to its autoencoder and latents. Tests must not change it: copy the parent."""

    def make(folder: Path) -> None:
        ended = call("train", kl_recipe, "--out", folder / "small")
        assert ended.code == 0, ended

    return made_once(tmp_path_factory, "latent-runs", make) / "small"


@pytest.fixture(scope="session")
def metrics() -> Callable[[Path], list[dict]]:
    """The rows of a run's metrics.jsonl without times and memory."""

    def read(folder: Path) -> list[dict]:
        rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        return [{k: v for k, v in row.items() if k not in CLOCK} for row in rows]

    return read


@pytest.fixture(scope="session")
def pictures() -> Callable[..., Path]:
    """Fill a folder with random RGB images, PNG, ``count`` of each class."""

    def draw(folder: Path, classes: tuple[str, ...], count: int, height: int = 40, width: int = 36) -> Path:
        random = np.random.default_rng(0)
        for name in classes:
            (folder / name).mkdir(parents=True, exist_ok=True)
            for index in range(count):
                pixels = random.integers(0, 256, (height, width, 3), np.uint8)
                Image.fromarray(pixels).save(folder / name / f"{index}.png")
        return folder

    return draw


@pytest.fixture
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty current folder, so that runs/ is not the user's."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def refuses() -> Callable[..., str]:
    """Call a function that must raise UserError with a one-line message that contains the given words; returns the message."""

    def check(call: Callable[[], object], *words: str) -> str:
        with pytest.raises(UserError) as caught:
            call()
        message = str(caught.value)
        assert "\n" not in message
        for word in words:
            assert word in message, message
        return message

    return check


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No network and an empty hub cache."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
