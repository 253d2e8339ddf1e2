"""The plan of a study: its settings, and the file that its worker processes read."""

from __future__ import annotations

import json
from dataclasses import dataclass, field, replace
from pathlib import Path

from ditlab.errors import UserError, nearest
from ditlab.recipes import Recipe
from ditlab.recipes.find import DATA
from ditlab.runtime import files
from ditlab.study import ablation, autoencoder, conditioning, sampling, scaling, text, unet
from ditlab.study.preset import StudyPreset, preset
from ditlab.study.study import Study
from ditlab.study.study_run import StudyRun

STUDIES: dict[str, Study] = {
    "scaling": scaling.STUDY, "conditioning": conditioning.STUDY, "unet": unet.STUDY, "sampling": sampling.STUDY,
    "ablation": ablation.STUDY, "autoencoder": autoencoder.STUDY, "text": text.STUDY,
}  # fmt: skip
RENAMED = {"ladder": "ablation"}  # names of studies before version 0.2
PLAN = "plan.json"


@dataclass(frozen=True)
class Plan:
    """A study on the data of one recipe."""

    study: str  # a name of STUDIES
    recipe: Recipe  # gives data, diffusion and optimiser
    seeds: int = 0  # of every setting; 0 is the study's default
    images: int = 0  # training images of each run; 0 is the preset's number
    count: int = 0  # samples to measure; 0 is the preset's number
    network: str = "efficientnet-lite0"  # the feature network
    weights: str = ""  # file of its weights; empty for the default weights
    rates: dict[str, float] = field(default_factory=dict)  # learning rates that the study's search chose

    def check(self) -> None:
        """Raise UserError if a value is invalid."""
        if self.study in RENAMED:
            raise UserError(f"study {self.study!r} has a new name: {RENAMED[self.study]}")
        if self.study not in STUDIES:
            raise UserError(f"unknown study {self.study!r}; {nearest(self.study, STUDIES)}")
        for name in ("seeds", "images", "count"):
            if getattr(self, name) < 0:
                raise UserError(f"--{name} {getattr(self, name)} must be 1 or more, or 0 for the study's default")
        if self.recipe.data.source in ("folder", "archive", "parquet") and not self.recipe.data.path:
            where = DATA.get(self.recipe.name, DATA["folder"])
            raise UserError(f"recipe {self.recipe.name!r} needs the path of its images; give --path; {where}")
        captions, prompts = self.recipe.text.kind != "none", STUDIES[self.study].prompts
        if prompts and not (captions and self.recipe.data.source == "scenes"):
            raise UserError(f"study {self.study!r} needs captions whose images can be judged; give --recipe scenes")
        if captions and not prompts:
            raise UserError(
                f"study {self.study!r} is of images with classes, and recipe {self.recipe.name!r} has captions; give another "
                "--recipe, or `ditlab study text`"
            )
        for run in self.runs:
            run.recipe.check()

    @property
    def preset(self) -> StudyPreset:
        """Network sizes, training length and sampling defaults."""
        return preset(self.recipe, self.images, self.count)

    @property
    def runs(self) -> list[StudyRun]:
        """All runs, in the report's order; of a study with a search those of the search only, until ``rates`` are chosen."""
        study, preset = STUDIES[self.study], replace(self.preset, rates=self.rates)
        runs = [] if study.search is None else study.search(preset)
        if study.search is None or self.rates:
            runs += [run for seed in range(self.seeds or study.seeds) for run in study.runs(replace(preset, seed=seed))]
        return list({run.name: run for run in runs}.values())

    def save(self, folder: Path) -> None:
        """Write ``plan.json``; raises UserError if the folder is not writable."""
        record = {**vars(self), "recipe": json.loads(self.recipe.to_json())}
        files.write_file(folder / PLAN, json.dumps(record, indent=2) + "\n")

    @classmethod
    def load(cls, folder: Path) -> Plan:
        """Read what ``save`` wrote, in this version or an earlier one; raises UserError if it is not a plan."""
        try:
            record = json.loads((folder / PLAN).read_text())
            recipe = Recipe.from_json(json.dumps(record.pop("recipe")), str(folder / PLAN))
            record["study"] = RENAMED.get(record["study"], record["study"])
            return cls(recipe=recipe, **record)
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise UserError(f"{folder / PLAN} is not the plan of a study ({error})") from error
