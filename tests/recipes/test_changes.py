"""Recipes with other values given as keywords."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import ditlab
from ditlab.data import DataConfig
from ditlab.errors import UserError
from ditlab.models import DiTConfig, UNetConfig
from ditlab.recipes.configs.digits import recipe as digits


def test_a_recipe_by_name_is_the_recipe_and_changes_leave_it_alone():
    assert ditlab.recipe("digits") is digits
    changed = ditlab.recipe("digits", depth=2, seed=np.int64(3))
    assert changed == replace(digits, model=replace(digits.model, depth=2), seed=3)
    assert digits.seed == 0
    assert ditlab.recipe(changed, depth=4, seed=0) == digits


@pytest.mark.parametrize(
    "changes",
    [
        {"lr": 0.01, "size": (16, 8)},
        {"train": {"lr": 0.01}, "data": {"size": [16, 8]}},
        {"train.lr": 0.01, "data.size": (16, 8)},
        {"train": replace(digits.train, lr=0.01), "data": DataConfig(source="digits", size=(16, 8))},
    ],
)
def test_fields_are_given_by_name_by_section_by_path_or_as_a_config(changes: dict):
    expected = replace(digits, train=replace(digits.train, lr=0.01), data=replace(digits.data, size=(16, 8)))
    assert ditlab.recipe("digits", **changes) == expected


def test_steps_of_training_are_batches_of_images():
    assert ditlab.recipe("digits", train={"steps": 100}).train.images == 12_800
    assert ditlab.recipe("digits", train={"batch": 10, "steps": 3}).train.images == 30
    assert ditlab.recipe("digits", sample={"steps": 9}).sample.steps == 9
    guided = ditlab.recipe("digits", sample={"guidance": {"scale": 2}})
    assert guided.sample.guidance.scale == 2
    assert guided.sample.steps == digits.sample.steps


def test_the_network_is_given_by_name_as_a_config_or_by_its_fields():
    assert ditlab.recipe("digits", model="DiT-B/2").model == DiTConfig.named("DiT-B/2")
    assert ditlab.recipe("digits", model="unet", width=32).model == UNetConfig(width=32)
    assert ditlab.recipe("digits", model=UNetConfig(width=32)).model == UNetConfig(width=32)
    assert ditlab.recipe("digits", model={"width": 32}).model == replace(digits.model, width=32)
    assert ditlab.recipe("digits", model={"kind": "U-Net", "width": 32}).model == UNetConfig(width=32)


def test_files_and_folders_of_recipes_are_found(tmp_path: Path, digits_run: Path):
    assert ditlab.recipe(digits_run, seed=1).seed == 1
    file = tmp_path / "own.py"
    file.write_text("import ditlab\n\nrecipe = ditlab.recipe('digits', name='own', depth=2)\n")
    assert ditlab.recipe(file).name == "own"


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"steps": 3}, "sample={'steps': ...} or train={'steps': ...}"),
        ({"dept": 3}, "did you mean 'depth'?"),
        ({"trian": {}}, "did you mean 'train'?"),
        ({"train": {"learning_rate": 1}}, "'learning_rate'; known"),
        ({"train": {"lrr": 1}}, "did you mean 'lr'?"),
        ({"train.lrr": 1}, "did you mean 'lr'?"),
        ({"sample": {"guidance": {"scal": 2}}}, "did you mean 'scale'?"),
        ({"depth": "four"}, "depth is 'four', must be int"),
        ({"sampler": None}, "sampler is None, must be str"),
        ({"path": object()}, "path is of type object"),
        ({"train": {"steps": 1.5}}, "1.5 steps"),
        ({"model": "DiT-M/2"}, "unknown model 'DiT-M/2'"),
        ({"train": 3}, "train must be an object, not 3"),
    ],
)
def test_changes_that_are_not_possible_are_answered_in_one_line(changes: dict, words: str):
    with pytest.raises(UserError) as raised:
        ditlab.recipe("digits", **changes)
    assert words in str(raised.value)
    assert "\n" not in str(raised.value)
    with pytest.raises(UserError, match="did you mean 'digits'"):
        ditlab.recipe("digit")
