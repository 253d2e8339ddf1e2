"""A study's cells: what each trains, how it samples, and what came out."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ditlab.errors import UserError
from ditlab.pipelines import SampleConfig
from ditlab.recipes import Recipe
from ditlab.runtime import files


@dataclass(frozen=True)
class StudyRun:
    """One measurement of a study.

    Attributes:
        name: of its result, unique in the study.
        run: of the training it needs; cells of one run share it.
        recipe: of that training.
        sample: how images are made.
        count: how many.
        values: what is varied, by name.
    """

    name: str
    run: str
    recipe: Recipe
    sample: SampleConfig
    count: int
    values: dict[str, Any]

    def key(self) -> dict[str, Any]:
        """Everything the result depends on, as JSON has it."""
        sample = json.loads(json.dumps(asdict(self.sample)))
        return {"recipe": json.loads(self.recipe.to_json()), "sample": sample, "count": self.count}


@dataclass(frozen=True)
class Result:
    """What came out of a cell.

    Attributes:
        name: the cell's.
        values: what was varied.
        key: everything it depends on.
        metric: name of the distance all cells are compared by.
        numbers: measured, by name, each a value and its spread.
        floor: of real images against real ones, likewise.
        network: its gmacs, parameters and tokens.
        training: images, gmacs in all, seconds, images_per_second, loss.
        sampling: seconds, network_calls an image, gmacs an image.
        more: what only some studies have, as an autoencoder's psnr.
    """

    name: str
    values: dict[str, Any]
    key: dict[str, Any]
    metric: str
    numbers: dict[str, dict[str, float | None]]
    floor: dict[str, dict[str, float | None]]
    network: dict[str, float]
    training: dict[str, float]
    sampling: dict[str, float]
    more: dict[str, float] = field(default_factory=dict)

    @property
    def distance(self) -> float:
        """The metric's value."""
        value = self.numbers[self.metric]["value"]
        assert value is not None
        return value

    def number(self, name: str) -> float:
        """The value of another measured number, by the beginning of its name."""
        value = next(number["value"] for known, number in self.numbers.items() if known.startswith(name))
        assert value is not None
        return value

    def save(self, folder: Path) -> None:
        """Write it as NAME.json.

        Raises:
            UserError: the disk is full or the place cannot be written.
        """
        files.write_file(folder / f"{self.name}.json", json.dumps(asdict(self), indent=2) + "\n")


def finished(cell: StudyRun, folder: Path) -> Result | None:
    """A cell's result, where it is there.

    Raises:
        UserError: the result is damaged, or of a cell of other settings.
    """
    path = folder / f"{cell.name}.json"
    if not path.exists():
        return None
    try:
        result = Result(**json.loads(path.read_text()))
    except (OSError, ValueError, TypeError) as error:
        raise UserError(f"{path} is damaged ({error}); delete it and its cell is measured again") from error
    if result.key != cell.key():
        raise UserError(
            f"{path} was measured with other settings ({_difference(result.key, cell.key())}); choose another --out"
        )
    return result


def _difference(there: Any, here: Any, name: str = "") -> str:
    """The first setting that differs."""
    if isinstance(there, dict) and isinstance(here, dict):
        for key in (*here, *(key for key in there if key not in here)):
            if there.get(key) != here.get(key):
                return _difference(there.get(key), here.get(key), f"{name}.{key}" if name else key)
    return f"{name} {there} there, {here} here"
