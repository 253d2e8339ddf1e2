"""Recipes by name, from a Python file, or from a run folder."""

from __future__ import annotations

import importlib
import importlib.util
import traceback
from pathlib import Path

from ditlab.errors import UserError, nearest
from ditlab.recipes.recipe import AutoencoderRecipe, Recipe, of_model, read_recipe

# Where to get the images of a recipe, and in which layout.
DATA = {
    "cifar10": (
        "get CIFAR-10 as parquet from huggingface.co/datasets/uoft-cs/cifar10 and give its folder plain_text, or a folder "
        "or archive with train/CLASS/*.png and test/CLASS/*.png"
    ),
    **dict.fromkeys(
        ("imagenet256", "imagenet512"),
        "get ImageNet (ILSVRC2012) from image-net.org, with an account, or from kaggle.com/c/imagenet-object-localization-"
        "challenge (ILSVRC/Data/CLS-LOC) and give the folder with train/n01440764/*.JPEG, one folder per class",
    ),
    "emoji": "`ditlab data emoji` gets them",
    "folder": "for example photos/cat/1.jpg and photos/dog/2.jpg with --data.path photos, or images without sub-folders",
}

NAMES = ("digits", "fashion", "fashion-plane", "scenes", "emoji", "cifar10", "folder", "imagenet256", "imagenet512")


def find_recipe(name: str) -> tuple[Recipe, Path]:
    """The recipe of a model and its default run folder; ``name`` as for ``find_any_recipe``."""
    recipe, folder = find_any_recipe(name)
    return of_model(recipe, name), folder


def find_any_recipe(name: str) -> tuple[Recipe | AutoencoderRecipe, Path]:
    """The recipe of a model, or that of an autoencoder from its folder, and the default run folder.

    ``name`` is one of ``NAMES``, a .py file that defines ``recipe``, a recipe.json or a run folder. Raises UserError if it
    is unknown or holds no recipe.
    """
    path = Path(name)
    if name in NAMES:
        recipe = importlib.import_module(f"ditlab.recipes.configs.{name.replace('-', '_')}").recipe
        return recipe, Path("runs") / recipe.name
    if path.suffix == ".py":
        own = _from_python(path)
        return own, Path("runs") / own.name
    if path.is_dir():
        path = path / "recipe.json"
    if path.suffix == ".json":
        if not path.is_file():
            images = f"; to train on the images of a folder: ditlab train folder --data.path {name}"
            raise UserError(f"no recipe at {path}{images if path.parent.is_dir() and Path(name).is_dir() else ''}")
        stored = read_recipe(path)
        if isinstance(stored, Recipe) and (path.parent / "autoencoder.json").exists():
            return stored.autoencoder_recipe(), path.parent  # written before version 0.2
        return stored, path.parent
    raise UserError(f"unknown recipe {name!r}; {nearest(name, NAMES)}, or a .py file, or a run folder")


def _from_python(path: Path) -> Recipe:
    if not path.is_file():
        raise UserError(f"no recipe at {path}")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except Exception as error:  # the user's own file may raise anything
        place = "".join(traceback.format_exception_only(error)).strip().splitlines()[-1]
        lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(path)]
        line = lines[-1] if lines else getattr(error, "lineno", None)
        raise UserError(f"{path}{f', line {line}' if line else ''}: {place}") from error
    recipe = getattr(module, "recipe", None)
    if not isinstance(recipe, Recipe):
        raise UserError(f"{path} defines no `recipe = Recipe(...)`")
    return recipe
