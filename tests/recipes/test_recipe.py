"""Recipes as values: named ones, files, JSON and flags."""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ditlab.cli.flags import parse
from ditlab.errors import UserError
from ditlab.models import DiTConfig
from ditlab.recipes import NAMES, Recipe, autoconfigure, find_recipe
from ditlab.recipes.recipe import flatten, refuse_other, save_recipe

CPU = torch.device("cpu")
DOCS = Path(__file__).parents[2] / "docs"


@pytest.mark.parametrize("name", NAMES)
def test_every_named_recipe_loads_and_survives_json(name: str):
    recipe, out = find_recipe(name)
    assert (recipe.name, out) == (name, Path("runs") / name)
    autoconfigure(recipe, CPU, print, open_size=False).check()
    again = Recipe.from_json(recipe.to_json())
    assert again == recipe
    assert again.to_json() == recipe.to_json()
    assert {type(value) for _, value in flatten(again)} <= {int, float, str, bool, tuple}


@pytest.mark.parametrize("name", NAMES)
def test_every_flag_of_a_recipe_is_a_field_with_help(name: str):
    for path, _ in flatten(find_recipe(name)[0]):
        assert re.fullmatch(r"[a-z_0-9.]+", path)


numbers = st.integers(1, 10**9)
shares = st.floats(0, 0.999, allow_nan=False)


@settings(max_examples=25, deadline=None)
@given(
    depth=numbers, rate=shares, sizes=st.lists(st.integers(1, 512), min_size=1, max_size=2), flip=st.booleans(),
    words=st.text("abcxyz/-. é", min_size=1).filter(lambda text: not text.startswith("-")),
    block=st.sampled_from(["adaln", "in-context"]),
)  # fmt: skip
def test_flags_override_fields_and_json_keeps_them(depth, rate, sizes, flip, words, block):
    recipe, _ = find_recipe("fashion")
    arguments = ["--model.depth", str(depth), "--train.lr", repr(rate), "--data.path", words, "--model.block", block]
    arguments += ["--data.size", *map(str, sizes), "--data.flip" if flip else "--data.no-flip"]
    given_recipe = parse(Recipe, arguments, "train fashion", recipe)
    changed = {name: value for name, value in flatten(given_recipe) if dict(flatten(recipe))[name] != value}
    expected = {"model.depth": depth, "train.lr": rate, "data.path": words, "data.size": tuple(sizes)}
    expected |= {"data.flip": flip, "model.block": block}
    assert changed == {name: value for name, value in expected.items() if dict(flatten(recipe))[name] != value}
    assert Recipe.from_json(given_recipe.to_json()) == given_recipe


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"trian": {}}, ["unknown field 'trian'", "did you mean 'train'?"]),
        ({"train": {"imges": 3}}, ["r.json: train has an unknown field 'imges'", "did you mean 'images'?"]),
        ({"train": 3}, ["train must be an object, not 3"]),
        ({"train": {"images": "many"}}, ["train: images is 'many', must be int"]),
        ({"train": {"images": 2.5}}, ["train: images is 2.5, must be int"]),
        ({"train": {"images": True}}, ["train: images is True, must be int"]),
        ({"data": {"size": 3}}, ["data: size is 3, must be a list of int"]),
        ({"data": {"size": ["a"]}}, ["data: size is 'a', must be int"]),
        ({"data": {"flip": 1}}, ["data: flip is 1, must be bool"]),
        ({"model": {"mlp": "swigl"}}, ["mlp is 'swigl'", "did you mean 'swiglu'?"]),
        ({"sample": {"guidance": {"scale": "high"}}}, ["sample: guidance: scale is 'high', must be float"]),
    ],
)
def test_json_that_is_not_a_recipe_is_refused_with_field_and_value(change: dict, words: list[str]):
    with pytest.raises(UserError) as caught:
        Recipe.from_json(json.dumps({"name": "x", **change}), "r.json")
    assert "\n" not in str(caught.value)
    for word in words:
        assert word in str(caught.value)


def test_whole_numbers_stand_for_fractions_and_missing_fields_for_their_defaults():
    recipe = Recipe.from_json('{"train": {"weight_decay": 0, "warmup": 1}}')
    assert recipe.train.warmup == 1.0
    assert isinstance(recipe.train.warmup, float)
    assert recipe == dataclasses.replace(Recipe(), train=dataclasses.replace(Recipe().train, warmup=1.0))


@pytest.mark.parametrize("text", ["", "{", "[]", "3", '"x"', "null"])
def test_json_that_is_not_an_object_is_refused(tmp_path: Path, text: str):
    (tmp_path / "recipe.json").write_text(text)
    with pytest.raises(UserError, match=r"recipe\.json"):
        find_recipe(str(tmp_path))


def test_a_recipe_json_that_is_not_text_is_refused(tmp_path: Path):
    (tmp_path / "recipe.json").write_bytes(b"\xff\xfe\x00{")
    with pytest.raises(UserError, match=r"recipe\.json cannot be read"):
        find_recipe(str(tmp_path / "recipe.json"))


def test_a_run_folder_and_its_recipe_json_are_the_recipe_of_the_run(digits_run: Path):
    recipe, out = find_recipe(str(digits_run))
    assert out == digits_run
    assert recipe.model == DiTConfig(depth=2, width=32, heads=2)
    assert (recipe.train.images, recipe.sample.steps) == (640, 2)
    assert find_recipe(str(digits_run / "recipe.json")) == (recipe, out)


def test_a_python_file_gives_its_recipe_and_the_folder_is_named_after_it(kl_recipe: Path):
    recipe, out = find_recipe(str(kl_recipe))
    assert out == Path("runs/small-latents")
    assert recipe.autoencoder.widths == (8, 16)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("x = 1\nrecipe = Recipe()\n", "own.py, line 2: NameError: name 'Recipe' is not defined"),
        ("x = (\n", "SyntaxError"),
        ("recipe = {}\n", "own.py defines no `recipe = Recipe(...)`"),
        ("import ditlab.nothing\n", "line 1: ModuleNotFoundError"),
        ("from ditlab.recipes import Recipe\n\nrecipe = Recipe(depth=3)\n", "line 3: TypeError"),
    ],
)
def test_a_python_file_that_gives_none_is_one_line(tmp_path: Path, text: str, words: str):
    (tmp_path / "own.py").write_text(text)
    with pytest.raises(UserError) as caught:
        find_recipe(str(tmp_path / "own.py"))
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["digist", "nowhere.py", "nowhere.json", "runs/nothing"])
def test_a_recipe_that_does_not_exist_is_named(name: str, elsewhere: Path):
    with pytest.raises(UserError, match=name):
        find_recipe(name)


def test_the_nearest_recipe_is_named():
    with pytest.raises(UserError, match=r"unknown recipe 'imagenet255'; did you mean 'imagenet256'\?"):
        find_recipe("imagenet255")


def test_autoconfigure_chooses_for_the_machine_and_logs_it():
    recipe, _ = find_recipe("folder")
    lines: list[str] = []
    small = autoconfigure(recipe, CPU, lines.append, open_size=True)
    large = autoconfigure(recipe, torch.device("cuda"), lines.append, open_size=True)
    assert (small.data.size, small.train.batch) == ((32,), 64)
    assert (large.data.size, large.train.batch) == ((64,), 256)
    assert "cpu" in lines[0]
    for words in ("size 32 (--data.size)", "batch 64 (--train.batch)", "precision fp32 (--train.precision)"):
        assert words in lines[0]
    assert "precision bf16" in lines[1]
    assert autoconfigure(small, CPU, lines.append, open_size=True) == small
    assert len(lines) == 2


def test_autoconfigure_keeps_what_is_set():
    recipe, _ = find_recipe("digits")
    lines: list[str] = []
    assert autoconfigure(recipe, CPU, lines.append, open_size=False) == recipe
    assert lines == []


def test_a_folder_of_other_settings_is_refused_naming_them_and_left_untouched(tmp_path: Path, tree):
    recipe, _ = find_recipe("digits")
    save_recipe(recipe, tmp_path)
    before = tree(tmp_path)
    other = dataclasses.replace(recipe, seed=1, model=DiTConfig(depth=9, width=64, heads=4))
    with pytest.raises(UserError) as caught:
        refuse_other(other, tmp_path)
    assert "seed 0 there, 1 here; model.depth 4 there, 9 here" in str(caught.value)
    assert "choose another --out" in str(caught.value)
    assert tree(tmp_path) == before
    refuse_other(other, tmp_path / "empty")


def test_a_longer_run_with_other_output_is_the_same_run(tmp_path: Path):
    recipe, _ = find_recipe("digits")
    save_recipe(recipe, tmp_path)
    train = dataclasses.replace(recipe.train, images=10**6, log=1, samples=1, checkpoint=1, keep_checkpoints=9)
    sample = dataclasses.replace(recipe.sample, steps=3)
    refuse_other(dataclasses.replace(recipe, name="x", train=train, sample=sample, sample_images=9), tmp_path)


def test_the_page_of_recipes_has_an_example_that_runs(tmp_path: Path, ditlab, tiny: list[str]):
    (example,) = re.findall(r"```python\n(.*?)```", (DOCS / "recipes.md").read_text(), re.DOTALL)
    path = tmp_path / "my_recipe.py"
    path.write_text(example)
    size = ["--train.images", "256", "--train.batch", "16", "--sample-images", "4", "--sample.steps", "2"]
    ended = ditlab("train", path, *size, "--model.depth", "1", "--out", tmp_path / "run")
    assert ended.code == 0, ended
    assert (tmp_path / "run" / "model.safetensors").is_file()
    shutil.rmtree(tmp_path / "run")


TORCHRUN = {"--nproc-per-node", "--max-restarts"}


def test_the_pages_name_only_flags_that_exist():
    known = (
        {f"--{name.replace('_', '-')}" for name, _ in flatten(Recipe())}
        | {"--out", "--help", "--profile", "--model"}
        | TORCHRUN
    )
    for page in ("recipes.md", "train.md"):
        for flag in re.findall(r"(?<![\w-])--[a-z][a-z0-9.-]+", (DOCS / page).read_text()):
            assert flag.replace(".no-", ".") in known, f"{page}: {flag}"
