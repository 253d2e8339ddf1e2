"""The model that comes with the package, as a person without a network finds it."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import ditlab
from ditlab.pipelines import Pipeline
from ditlab.pipelines.shipped import FOLDER, MOST, SHIPPED, locate

ROOT = Path(__file__).parent.parent.parent


@pytest.fixture(scope="module")
def model() -> Pipeline:
    return ditlab.load("fashion")


@pytest.mark.parametrize("name", SHIPPED)
def test_it_is_small_enough_and_has_its_card(name: str):
    folder = FOLDER / name
    assert sum(path.stat().st_size for path in folder.iterdir()) <= MOST
    card = (folder / "README.md").read_text()
    for word in ("Data:", "images seen", "Command:", "Apache-2.0", "| right class |", "precision", "FD-EffNetLite0@64"):
        assert word in card


@pytest.mark.usefixtures("offline")
def test_it_makes_clothes_of_the_class_that_is_asked_for(model: Pipeline):
    """A coat covers the middle of its picture and no leg gap; trousers have one; a sneaker leaves the top empty."""
    assert len(model.names) == 10
    images = {
        label: model.sample([label], seed=3, count=5).astype(np.float64).mean(axis=0)[..., 0]
        for label in ("Trouser", "Sneaker", "Coat")
    }
    legs = images["Trouser"][18:26]
    assert legs[:, 13:15].mean() < 0.7 * legs[:, [10, 11, 16, 17]].mean()
    assert images["Sneaker"][:6].mean() < 15 < 60 < images["Sneaker"][14:20].mean()
    assert images["Coat"][6:24, 9:19].mean() > 90


def test_weights_are_float32_again_in_memory(model: Pipeline):
    assert all(value.dtype.is_floating_point and value.itemsize == 4 for value in model.network.parameters())


def test_what_lies_here_comes_first(elsewhere: Path):
    assert locate("fashion") == FOLDER / "fashion"
    (elsewhere / "fashion").mkdir()
    assert locate("fashion") == Path("fashion")
    assert locate("fashion/model.safetensors") == Path("fashion/model.safetensors")


def test_the_command_line_samples_it(elsewhere: Path, ditlab):
    ended = ditlab("sample", "fashion", "--labels", "sneaker,bag", "--count", 4, "--steps", 4, "--out", "grid.png")
    assert ended.code == 0, ended
    with Image.open(elsewhere / "grid.png") as picture:
        assert min(picture.size) > 50
    assert (elsewhere / "grid-filmstrip.png").exists()


def test_the_wheel_carries_it(tmp_path: Path):
    command = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "--no-deps",
        "--no-build-isolation",
        "--quiet",
        "-w",
        str(tmp_path),
        ".",
    ]
    copy = tmp_path / "source"
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True, text=True).stdout
    for name in listed.split("\0"):
        if name.startswith(("ditlab/", "pyproject", "README", "LICENSE")) and (ROOT / name).is_file():
            target = copy / name
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes((ROOT / name).read_bytes())
    subprocess.run(command, cwd=copy, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    assert wheel.name.startswith(f"ditlab-{ditlab.__version__}-")
    names = zipfile.ZipFile(wheel).namelist()
    assert "ditlab/py.typed" in names
    for name in SHIPPED:
        for file in ("model.safetensors", "model.json", "README.md"):
            assert f"ditlab/pipelines/shipped/{name}/{file}" in names
