"""The demo: its length fits the machine; shortened, it trains, measures against real digits, draws, and logs where."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ditlab.cli import demo_run
from ditlab.cli.demo_run import COUNT, SHORTEST, Judge, Speeds, plan_images, run_demo
from ditlab.data import DataConfig, Images, open_data
from ditlab.pipelines import Pipeline
from ditlab.recipes import find_recipe

LIMIT = 360  # seconds that the whole demo may take


@pytest.fixture(scope="module")
def digits() -> Images:
    return open_data(DataConfig(source="digits")).load()


def test_the_judge_knows_real_digits_and_is_not_fooled(digits: Images):
    judge = Judge(digits)
    images = digits.pixels.transpose(0, 2, 3, 1)
    assert judge.held_out >= 0.98
    real = judge.measure(images, digits.labels)
    assert (real.precision, real.recall) == (1, 1)
    assert real.right > 0.99
    assert judge.measure(images, (digits.labels + 1) % 10).right < 0.01
    noise = np.random.default_rng(0).integers(0, 256, images.shape, np.uint8)
    assert judge.measure(noise, digits.labels).precision < 0.01
    floor = judge.floor()
    assert 0.88 < floor.precision < 0.96
    assert 0.88 < floor.recall < 0.96


class SlowMachine:
    """A machine whose clock is advanced by what it computes.

    Attributes:
        seconds: since the demo started.
    """

    def __init__(self, slowness: float, start: float = 12.0):
        """``slowness`` 1 is the usual machine: two cores, 3,776 images/s in training, 230 in sampling."""
        self.speeds = Speeds(3776 / slowness, 230 / slowness)
        self.seconds = start * slowness

    def demo(self) -> int:
        """Run the demo on the fake clock; gives the images trained on."""
        recipe, _ = find_recipe("digits")
        images = plan_images(recipe, self.speeds, self.seconds)
        for step in range(0, images, recipe.train.batch):
            self.seconds += recipe.train.batch / self.speeds.training
            if step // recipe.train.samples != (step + recipe.train.batch) // recipe.train.samples:
                self.seconds += recipe.sample_images / self.speeds.sampling
        for network_evaluations in (1, 2):
            self.seconds += network_evaluations * COUNT / self.speeds.sampling
        return images


def test_a_usual_machine_trains_the_recipes_full_length():
    machine = SlowMachine(1)
    assert machine.demo() == 600_000
    assert machine.seconds < LIMIT


@pytest.mark.parametrize("slowness", [1.75, 2, 2.5, 3])
def test_a_machine_a_third_as_fast_ends_in_time_with_all_the_training_that_fits(slowness: float):
    machine = SlowMachine(slowness)
    images = machine.demo()
    assert SHORTEST <= images < 600_000
    assert 0.75 * LIMIT < machine.seconds < LIMIT


def test_on_a_machine_that_is_slower_still_accuracy_comes_first():
    machine = SlowMachine(10)
    assert machine.demo() == SHORTEST
    assert machine.seconds > LIMIT


def test_a_recipe_shorter_than_the_shortest_length_keeps_its_own():
    recipe, _ = find_recipe("digits")
    short = replace(recipe, train=replace(recipe.train, images=2560))
    assert plan_images(short, Speeds(3776, 230), 10) == 2560
    assert plan_images(short, Speeds(1, 1), 10) == 2560


def test_the_demo_measures_the_machine_and_ends_with_pictures_and_scores(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    fashion = Pipeline.load("fashion")
    fashion.defaults = replace(fashion.defaults, steps=2)
    load = Pipeline.load
    monkeypatch.setattr(Pipeline, "load", lambda path: fashion if path == "fashion" else load(path))
    recipe, file = find_recipe("digits")
    quick = replace(recipe, sample=replace(recipe.sample, steps=3))
    monkeypatch.setattr(demo_run, "find_recipe", lambda name: (quick, file) if name == "digits" else find_recipe(name))
    lines: list[str] = []
    rows = run_demo(tmp_path / "demo", lines.append, torch.device("cpu"), images=1280, count=100)
    assert len(rows) == 3
    assert all(0 <= share <= 1 for row in rows.values() for share in (row.right, row.precision, row.recall))
    assert any("training on 1,280 images (the recipe's full length)" in line for line in lines)
    for name in ("digits.png", "filmstrip.png", "fashion.png"):
        with Image.open(tmp_path / "demo" / name) as picture:
            assert min(picture.size) > 200
        assert any(str(tmp_path / "demo" / name) in line for line in lines)
    page = (tmp_path / "demo" / "demo.md").read_text()
    for row in rows.values():
        assert f"{row.precision:.3f} | {row.recall:.3f}" in page
