"""``ditlab study``: experiments of many runs."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

import tyro

from ditlab.cli.flags import parse


@dataclass(frozen=True)
class StudyOptions:
    """Train and measure all runs of a study that have no result yet, and write its report."""

    study: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="STUDY")]
    """scaling, conditioning, unet, sampling, ablation, autoencoder or text."""
    recipe: str = ""
    """Recipe that gives data and training: digits takes half an hour on two cores; fashion and cifar10 need a GPU. Empty:
    digits, or scenes for text."""
    path: str = ""
    """Path of the recipe's images, as --data.path of `ditlab train`."""
    seeds: int = 0
    """Seeds of every setting; 0 is the study's default."""
    images: int = 0
    """Training images of each run; 0 is the preset's number."""
    count: int = 0
    """Samples to measure in each run; 0 is the preset's number."""
    jobs: int = 0
    """Trainings in parallel; 0 is one per GPU, or one per CPU core."""
    device: str = ""
    """cpu, cuda, cuda:1 or mps; empty: a GPU if there is one."""
    network: str = "efficientnet-lite0"
    """Feature network: efficientnet-lite0 or inception."""
    weights: str = ""
    """File of Inception weights that replaces the reference weights."""
    out: str = ""
    """Folder of the study; empty: studies/STUDY-RECIPE."""


def study(arguments: list[str]) -> None:
    """Run an experiment of many training runs: scaling, conditioning, unet, sampling, ablation, autoencoder, text."""
    options = parse(StudyOptions, arguments, "study")
    from ditlab.recipes import find_recipe
    from ditlab.runtime.console import log
    from ditlab.study import Plan, run_study

    recipe, _ = find_recipe(options.recipe or ("scenes" if options.study == "text" else "digits"))
    if options.path:
        recipe = replace(recipe, data=replace(recipe.data, path=options.path))
    names = ("seeds", "images", "count", "network", "weights")
    plan = Plan(options.study, recipe, **{name: getattr(options, name) for name in names})
    run_study(
        plan, Path(options.out or f"studies/{options.study}-{recipe.name}"), options.jobs, log, device=options.device
    )
