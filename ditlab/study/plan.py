"""What a study is asked to do, as a file its workers read."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from ditlab.errors import UserError, nearest
from ditlab.recipes import Recipe
from ditlab.runtime import files
from ditlab.study import autoencoder, conditioning, ladder, sampling, scaling, unet
from ditlab.study.preset import StudyPreset, form
from ditlab.study.study import Study
from ditlab.study.study_run import StudyRun

STUDIES: dict[str, Study] = {
    "scaling": scaling.STUDY,
    "conditioning": conditioning.STUDY,
    "unet": unet.STUDY,
    "sampling": sampling.STUDY,
    "ladder": ladder.STUDY,
    "autoencoder": autoencoder.STUDY,
}
PLAN = "plan.json"


@dataclass(frozen=True)
class Plan:
    """A study over one recipe's data.

    Attributes:
        study: its name.
        recipe: whose data and training it takes.
        seeds: of every setting; 0 is the study's own number.
        images: trained on in a cell; 0 is the form's number.
        count: made in a cell; 0 is the form's number.
        network: the feature network.
        weights: file of its weights, where they are not the usual ones.
    """

    study: str
    recipe: Recipe
    seeds: int = 0
    images: int = 0
    count: int = 0
    network: str = "efficientnet-lite0"
    weights: str = ""

    def check(self) -> None:
        """Raise UserError where it makes no sense."""
        if self.study not in STUDIES:
            raise UserError(f"unknown study {self.study!r}; {nearest(self.study, STUDIES)}")
        for name in ("seeds", "images", "count"):
            if getattr(self, name) < 0:
                raise UserError(f"--{name} {getattr(self, name)} must be 1 or more, or 0 for the study's own")
        if self.recipe.data.source in ("folder", "archive", "parquet") and not self.recipe.data.path:
            raise UserError(f"recipe {self.recipe.name!r} does not say where its images are; give --path")
        for cell in self.cells:
            cell.recipe.check()

    @property
    def form(self) -> StudyPreset:
        """How large its cells are."""
        return form(self.recipe, self.images, self.count)

    @property
    def cells(self) -> list[StudyRun]:
        """All cells, in the order of the report."""
        study = STUDIES[self.study]
        return study.cells(self.form, self.seeds or study.seeds)

    def save(self, folder: Path) -> None:
        """Write ``plan.json``.

        Raises:
            UserError: the disk is full or the folder cannot be written.
        """
        record = {name: value for name, value in vars(self).items() if name != "recipe"}
        record["recipe"] = json.loads(self.recipe.to_json())
        files.write_file(folder / PLAN, json.dumps(record, indent=2) + "\n")

    @classmethod
    def load(cls, folder: Path) -> Plan:
        """Read what ``save`` wrote.

        Raises:
            UserError: there is no plan of this version.
        """
        try:
            record = json.loads((folder / PLAN).read_text())
            recipe = Recipe.from_json(json.dumps(record.pop("recipe")), str(folder / PLAN))
            return cls(recipe=recipe, **record)
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise UserError(f"{folder / PLAN} is not a study's plan ({error})") from error
