"""Recipes by name, by Python file, or from a run."""

from __future__ import annotations

import importlib
import importlib.util
import traceback
from pathlib import Path

from ditlab.errors import UserError, nearest
from ditlab.recipes.recipe import Recipe, read_recipe

NAMES = ("digits", "fashion", "fashion-plane", "cifar10", "folder", "imagenet256", "imagenet512")


def find_recipe(name: str) -> tuple[Recipe, Path]:
    """A recipe and the run folder it goes to unless told otherwise.

    Args:
        name: one of ``NAMES``; a .py file that defines ``recipe``; a recipe.json; a run folder.

    Raises:
        UserError: unknown, or a file that holds no recipe.
    """
    path = Path(name)
    if name in NAMES:
        recipe: Recipe = importlib.import_module(f"ditlab.recipes.configs.{name.replace('-', '_')}").recipe
        return recipe, Path("runs") / recipe.name
    if path.suffix == ".py":
        recipe = _from_python(path)
        return recipe, Path("runs") / recipe.name
    if path.is_dir():
        path = path / "recipe.json"
    if path.suffix == ".json":
        if not path.is_file():
            raise UserError(f"no recipe at {path}")
        return read_recipe(path), path.parent
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
    except Exception as error:  # the file is a person's own: whatever it raises is theirs to mend
        place = "".join(traceback.format_exception_only(error)).strip().splitlines()[-1]
        lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(path)]
        line = lines[-1] if lines else getattr(error, "lineno", None)
        raise UserError(f"{path}{f', line {line}' if line else ''}: {place}") from error
    recipe = getattr(module, "recipe", None)
    if not isinstance(recipe, Recipe):
        raise UserError(f"{path} defines no `recipe = Recipe(...)`")
    return recipe
