"""A recipe with other values, given as keywords."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ditlab.errors import UserError, nearest
from ditlab.models import NETWORKS, named
from ditlab.models.network import to_record
from ditlab.recipes.recipe import Recipe

SECTIONS = ("data", "model", "diffusion", "train", "sample")  # whose fields need no section where the name is unique


def changed(recipe: Recipe, changes: Mapping[str, object]) -> Recipe:
    """A recipe with other values.

    Args:
        recipe: stays as it is.
        changes: by the name of a field: a value, or for a section a dictionary of its fields or its config. The name of a
            section's field alone will do where only one section has it, and so will its path, ``train.lr``.
            ``train={"steps": 100}`` stands for as many batches of images.

    Raises:
        UserError: an unknown name, which is answered with the nearest, or a value of another type.
    """
    record = json.loads(recipe.to_json())
    for name, value in changes.items():
        value = _plain(value, name)
        section, _, field = _path(record, name).rpartition(".")
        for part in reversed(section.split(".") if section else []):
            field, value = part, {field: value}
        _merge(record, field, value)
    for section in ("train", "autoencoder_train"):
        _count_images(record[section], section)
    return Recipe.from_json(json.dumps(record), f"recipe {recipe.name!r}")


def _path(record: Mapping[str, Any], name: str) -> str:
    """The path of a name from the keywords."""
    if name in record or "." in name:
        return name
    fields = {(section, field) for section in SECTIONS for field in record[section] if field != "kind"}
    fields |= {("train", "steps")}
    found = sorted(section for section, field in fields if field == name)
    if not found:
        raise UserError(f"a recipe has no field {name!r}; {nearest(name, [*record, *(field for _, field in fields)])}")
    if len(found) > 1:
        ways = " or ".join(f"{section}={{{name!r}: ...}}" for section in found)
        raise UserError(f"{name} is a field of {' and '.join(found)}; give {ways}")
    return f"{found[0]}.{name}"


def _merge(record: dict[str, Any], name: str, value: Any) -> None:
    """Set a field; the fields of a dictionary are set one by one."""
    there = record.get(name)
    if (
        isinstance(value, dict)
        and isinstance(there, dict)
        and value.get("kind", there.get("kind")) == there.get("kind")
    ):
        for field, item in value.items():
            _merge(there, field, item)
    else:  # a value, or a network of another kind
        record[name] = value


def _plain(value: Any, name: str) -> Any:
    """A value as JSON has it; a network by its name."""
    if name == "model" and isinstance(value, str):
        value = named(value)
    if isinstance(value, tuple(NETWORKS.values())):
        return _plain(to_record(value), name)

    def convert(item: Any) -> Any:
        if isinstance(item, Path):
            return str(item)
        if isinstance(item, np.generic):
            return item.item()
        if dataclasses.is_dataclass(item) and not isinstance(item, type):
            return dataclasses.asdict(item)
        raise UserError(f"{name} is of type {type(item).__name__}; give text, a number, a list or a dictionary")

    return json.loads(json.dumps(value, default=convert))


def _count_images(train: Any, section: str) -> None:
    """Replace ``steps`` of training by the images that they take."""
    if not isinstance(train, dict) or "steps" not in train:
        return
    steps, batch = train.pop("steps"), train.get("batch")
    if type(steps) is not int or type(batch) is not int or steps < 1 or batch < 1:
        example = f'{section}={{"steps": 100, "batch": 64}}'
        raise UserError(f"{section}: {steps!r} steps of a batch of {batch!r} are no count of images; give {example}")
    train["images"] = steps * batch
