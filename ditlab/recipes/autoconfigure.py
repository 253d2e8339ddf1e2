"""Settings that a recipe leaves open, chosen for the machine and logged."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

import torch

from ditlab.encoders import autoencoder_kind
from ditlab.models import DiTConfig
from ditlab.recipes.recipe import AutoencoderRecipe, Recipe, read_recipe
from ditlab.runtime import threads
from ditlab.runtime.console import duration
from ditlab.runtime.distributed import Processes
from ditlab.train import Task, time_images
from ditlab.train.checkpoint import existing
from ditlab.train.stop import FIRST_PICTURE

R = TypeVar("R", bound=Recipe | AutoencoderRecipe)
Log = Callable[[str], None]

CPU_MODEL = {"depth": 6, "width": 128, "heads": 4}
CPU_SECONDS = 1800.0  # of training on a CPU whose length is open
MOST, LEAST, ROUND = 1_000_000, 64_000, 6_400  # images of a training whose length is open; they are a multiple of ROUND
QUICKER = 5  # times shorter is the training that is named next to the estimated time
PICTURE_SHARE = 0.25  # of the training before it, at most, that the first preview takes


def autoconfigure(
    recipe: R, device: torch.device, log: Log, open_size: bool, open_model: bool = False, out: Path | None = None
) -> R:
    """Choose image size, network and batch sizes that are open for a device, and log them: a batch of 0, an empty size.

    Without ``open_size``, which recipe ``folder`` has, an empty size means the size of the images; with ``open_model`` a
    smaller network is chosen on a CPU. The run in ``out``, if there is one, keeps what was chosen at its start. A length of
    0 images is chosen by ``fit_to_machine``, when the images are known.
    """
    stored = read_recipe(out / "recipe.json") if out and (out / "recipe.json").is_file() else None
    started = stored if isinstance(stored, type(recipe)) else None
    gpu, chosen = device.type != "cpu", []
    if open_size and not recipe.data.size:
        size = started.data.size if started else (64 if gpu else 32,)
        recipe = replace(recipe, data=replace(recipe.data, size=size))
        chosen.append(f"size {'x'.join(map(str, size))} (--data.size)")
    if open_model and isinstance(recipe, Recipe):
        if isinstance(started, Recipe):
            recipe = replace(recipe, model=started.model)
        elif not gpu:
            assert isinstance(recipe.model, DiTConfig)
            recipe = replace(recipe, model=replace(recipe.model, **CPU_MODEL))
        chosen.append(", ".join(f"{name} {getattr(recipe.model, name)} (--model.{name})" for name in CPU_MODEL))
    trained = ["train"]
    if isinstance(recipe, Recipe) and autoencoder_kind(recipe.autoencoder.kind).trained:
        trained.append("autoencoder_train")
    for field in trained:
        config = getattr(recipe, field)
        if config.batch == 0:
            config = replace(config, batch=getattr(started, field).batch if started else 256 if gpu else 64)
            chosen.append(f"batch {config.batch} (--{field.replace('_', '-')}.batch)")
        if config.images == 0 and (started or gpu):
            config = replace(config, images=getattr(started, field).images if started else MOST)
        recipe = replace(recipe, **{field: config})
    if chosen:
        chosen.append(f"precision {recipe.train.precision_on(device)} (--train.precision)")
        when = "at the start of this run" if started else f"for this machine ({device})"
        log(f"chosen {when}: {', '.join(chosen)}")
    return recipe


def fit_to_machine(
    recipe: R, task: Task, out: Path, device: torch.device, processes: Processes, log: Log
) -> tuple[R, float]:
    """Choose CPU threads and an open length by timing steps of ``task``, and log them and the time that training takes.

    Returns the recipe, and the seconds of training before the first preview. On a GPU, and for a run with a checkpoint,
    nothing is timed.
    """
    config, resumes = recipe.train, bool(existing(out / "checkpoints"))
    if (used := config.precision_on(device)) != config.precision != "auto":
        log(f"precision {used}: this CPU has no instructions for {config.precision}")
    if device.type != "cpu" or (resumes and config.images):
        return replace(recipe, train=replace(config, images=config.images or MOST)), FIRST_PICTURE
    seconds = processes.broadcast_from_main(lambda: time_images(task, config, processes))
    image = min(seconds.values()) / processes.size
    if len(seconds) > 1:
        log(threads.describe({count: config.batch * each for count, each in seconds.items()}, "--train.threads"))
    chosen = ""
    if not config.images:
        fit = min(MOST, max(LEAST, int(CPU_SECONDS / image) // ROUND * ROUND))
        config, chosen = replace(config, images=fit), " chosen for this machine (--train.images)"
    evaluations = 0.0
    if isinstance(recipe, Recipe):  # at most two a step, each for one or two rows
        guided = 1 + (recipe.sample.guidance.scale != 1)
        evaluations = recipe.sample_images * recipe.sample.steps * 2 * guided
    first = max(FIRST_PICTURE, evaluations * image / 3 / PICTURE_SHARE)  # a training step takes three evaluations
    total = config.images * image
    picture = min(first, config.samples * image, total)
    log(
        f"estimated time: {duration(total)} for {config.images:,} images{chosen} at {1 / image:,.3g} images/s; "
        f"first picture after {duration(picture)}, in {out / 'samples'}"
    )
    shorter = config.images // QUICKER // config.batch * config.batch
    if isinstance(recipe, Recipe) and shorter and total > 2 * FIRST_PICTURE:
        log(f"quicker: the same command with --train.images {shorter}, about {duration(shorter * image)}")
    return replace(recipe, train=config), first
