"""``ditlab study``: a question answered by many runs."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

import tyro

from ditlab.cli.flags import parse


@dataclass(frozen=True)
class StudyOptions:
    """Train and measure all cells of a study, skipping those that are measured, and write its report."""

    study: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="STUDY")]
    """scaling, conditioning, unet, sampling, ladder or autoencoder."""
    recipe: str = "digits"
    """Whose data and training: digits takes half an hour on two cores; fashion and cifar10 are for a GPU."""
    path: str = ""
    """Where the recipe's images are, as --data.path of `ditlab train`."""
    seeds: int = 0
    """Seeds of every setting; 0 is the study's own number."""
    images: int = 0
    """Images each cell is trained on; 0 is the number made for the data."""
    count: int = 0
    """Images each cell makes; 0 is the number made for the data."""
    jobs: int = 0
    """Runs side by side; 0 is one a GPU, or one a core."""
    network: str = "efficientnet-lite0"
    """Feature network: efficientnet-lite0 or inception."""
    weights: str = ""
    """File of Inception weights in place of the reference ones."""
    out: str = ""
    """Folder of the study; empty: studies/STUDY-RECIPE."""


def study(arguments: list[str]) -> None:
    """Answer a question by many runs: scaling, conditioning, unet, sampling, ladder, autoencoder."""
    options = parse(StudyOptions, arguments, "study")
    from ditlab.recipes import find_recipe
    from ditlab.runtime.console import log
    from ditlab.study import Plan, run_study

    recipe, _ = find_recipe(options.recipe)
    if options.path:
        recipe = replace(recipe, data=replace(recipe.data, path=options.path))
    names = ("seeds", "images", "count", "network", "weights")
    plan = Plan(options.study, recipe, **{name: getattr(options, name) for name in names})
    run_study(plan, Path(options.out or f"studies/{options.study}-{recipe.name}"), options.jobs, log)
