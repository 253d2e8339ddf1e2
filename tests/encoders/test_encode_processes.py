"""Encoding by several processes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from forked import together
from PIL import Image

from ditlab.data import open_data
from ditlab.encoders import LatentCache, cache, cache_key, record
from ditlab.recipes import find_recipe

SHARD = "\nfrom ditlab.encoders import cache\n\ncache.SHARD = 100\n"  # at the end of a recipe file: six shards, not one

# The second process is killed in its second shard, the others' shards are whole or not as it happens.
KILLED = """
import os, signal
from ditlab.encoders import DiffusersAutoencoder

encode, seen = DiffusersAutoencoder.encode, [0]
def killed(self, pixels):
    seen[0] += len(pixels)
    if os.environ["RANK"] == "1" and seen[0] > 260:  # a shard is 200, mirrored ones and all
        os.kill(os.getpid(), signal.SIGKILL)
    return encode(self, pixels)
DiffusersAutoencoder.encode = killed
"""


# Writes how many folders each process lists below the folder of images.
COUNTED = """
import atexit, os
from pathlib import Path

scandir, listed = os.scandir, []
def counted(path="."):
    if "photos" in str(path):
        listed.append(path)
    return scandir(path)
os.scandir = counted
if "RANK" in os.environ:
    atexit.register(lambda: Path(os.environ["LISTED"] + os.environ["RANK"]).write_text(str(len(listed))))
"""


def cached(files: dict[str, str]) -> dict[str, str]:
    """A cache's files that a URL has as well: not the index, the URL of the copy and the held-out images."""
    return {name: content for name, content in files.items() if name not in ("index.json", "url", "held-out.npz")}


def torchrun(count: int, *arguments: object) -> subprocess.CompletedProcess[str]:
    """``ditlab ARGUMENTS`` by so many processes that torchrun starts, as a user would."""
    launch = ["torch.distributed.run", "--standalone", "--nproc-per-node", count, "-m"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[2])}
    return subprocess.run(
        list(map(str, [sys.executable, "-m", *launch, "ditlab", *arguments])),
        capture_output=True, text=True, env=environment, timeout=200, check=False,
    )  # fmt: skip


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory, kl_recipe: Path) -> Path:
    """The latent recipe, in shards of 100 images."""
    path = tmp_path_factory.mktemp("sharded") / "small.py"
    path.write_text(kl_recipe.read_text() + SHARD)
    return path


@pytest.fixture(scope="module")
def beside(kl_run: Path) -> list[object]:
    """Flags by which a recipe uses the autoencoder that is there."""
    return ["--autoencoder.path", kl_run.with_name("small-autoencoder"), "--data.flip"]


@pytest.fixture(scope="module", autouse=True)
def shards() -> Iterator[None]:
    """Reading the recipe changes the shards' size here, too; afterwards it is as it was."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cache, "SHARD", 100)
        yield


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory, recipe: Path, beside: list[object], ditlab: Callable) -> Path:
    """The cache that one process makes. Not to be changed."""
    folder = tmp_path_factory.mktemp("alone")
    ended = ditlab("encode", recipe, *beside, "--out", folder / "run")
    assert (ended.code, ended.err) == (0, "")
    return folder / "run-latents"


@pytest.mark.parametrize("count", [2, 3])
def test_any_number_of_processes_writes_the_same_bytes(
    tmp_path: Path, recipe: Path, beside: list[object], alone: Path, tree: Callable, count: int
):
    ended = together(count, "encode", recipe, *beside, "--out", tmp_path / "run")
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.count("latents: 600 of") == 1
    assert tree(tmp_path / "run-latents") == tree(alone)
    assert len(tree(alone)) == 6 * 3 + 3  # three files per shard, the manifest, the index and the held-out images


def test_what_three_processes_left_when_one_was_killed_is_finished_by_two(
    tmp_path: Path, recipe: Path, beside: list[object], alone: Path, tree: Callable
):
    folder, killing = tmp_path / "run-latents", tmp_path / "killing" / "small.py"
    killing.parent.mkdir()
    killing.write_text(recipe.read_text() + KILLED)
    killed = together(3, "encode", killing, *beside, "--out", tmp_path / "run")
    assert killed.returncode == -signal.SIGKILL
    left = tree(folder)
    assert "00001.rows.npy" in left
    assert "00004.rows.npy" not in left
    assert json.loads((folder / "manifest.json").read_text())["complete"] is False
    rest = {name: (folder / name).stat().st_mtime_ns for name in left if name.endswith(".npy")}
    ended = together(2, "encode", recipe, *beside, "--out", tmp_path / "run")
    assert ended.returncode == 0, ended.stderr
    assert tree(folder) == tree(alone)
    whole = [name for name in rest if name.replace("moments", "rows").replace("flipped", "rows") in left]
    assert len(whole) >= 3
    assert all((folder / name).stat().st_mtime_ns == rest[name] for name in whole)  # not written again


def test_unreadable_images_are_told_whichever_process_met_them(
    tmp_path: Path,
    recipe: Path,
    beside: list[object],
    tree: Callable,
    ditlab: Callable,
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setenv("LISTED", f"{tmp_path}/listed")
    counting = tmp_path / "counting" / "small.py"
    counting.parent.mkdir()
    counting.write_text(recipe.read_text() + COUNTED)
    random, broken = np.random.default_rng(0), ("a/005.png", "a/150.png", "b/210.png")  # of both processes
    for index in range(230):
        path = tmp_path / "photos" / ("a" if index < 200 else "b") / f"{index:03d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(random.integers(0, 256, (8, 8), np.uint8)).save(path)
    for name in broken:
        path = tmp_path / "photos" / name
        path.write_bytes(path.read_bytes()[:50])
    flags = [*beside, "--data.source", "folder", "--data.path", tmp_path / "photos", "--data.limit", "0"]
    one = ditlab("encode", recipe, *flags, "--out", tmp_path / "one")
    two = together(2, "encode", counting, *flags, "--out", tmp_path / "two")
    assert (one.code, two.returncode) == (0, 0), two.stderr
    for said in (one.out, two.stdout):
        assert said.count("3 unreadable images skipped: ") == 1
        assert all(said.count(f"{name}: ") == 1 for name in broken), said
    assert tree(tmp_path / "one-latents") == tree(tmp_path / "two-latents")
    listed = [int((tmp_path / f"listed{rank}").read_text()) for rank in range(2)]
    assert listed[0] >= 3
    assert listed[1] == 0  # the first process lists for both
    autoencoder = record.load(Path(str(beside[1])))
    config = replace(find_recipe(str(recipe))[0].data, source="folder", path=str(tmp_path / "photos"), limit=0)
    latents = LatentCache(tmp_path / "two-latents", cache_key(open_data(config), autoencoder, True))
    assert np.bincount(latents.labels).tolist() == [198, 29]


def test_each_process_sends_its_own_shards_to_a_url_and_fetches_them_from_it(
    tmp_path: Path, recipe: Path, beside: list[object], alone: Path, tree: Callable
):
    url = f"file://{tmp_path}/bucket"
    flags = [*beside, "--latents", url, "--out"]
    sent = together(2, "encode", recipe, *flags, tmp_path / "one")
    assert sent.returncode == 0, sent.stderr
    assert tree(tmp_path / "bucket") == cached(tree(alone))
    stood = {path: path.stat().st_mtime_ns for path in (tmp_path / "bucket").iterdir()}
    fetched = together(2, "encode", recipe, *flags, tmp_path / "two")
    assert fetched.returncode == 0, fetched.stderr
    assert cached(tree(tmp_path / "two-latents")) == cached(tree(alone))
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "bucket").iterdir()} == stood


def test_a_refusal_reaches_every_process_and_ends_all(
    tmp_path: Path, recipe: Path, beside: list[object], alone: Path, tree: Callable
):
    before = tree(alone)
    flags = [*beside, "--data.limit", "500", "--latents", alone, "--out", tmp_path / "run"]
    ended = torchrun(2, "encode", recipe, *flags)
    assert ended.returncode != 0
    lines = [line for line in ended.stderr.splitlines() if line.startswith("ditlab:")]
    assert lines
    assert all(f"the latent cache {alone} was made with other images" in line for line in lines)
    assert ended.stderr.count("Traceback") == 1  # torchrun's own
    assert tree(alone) == before
