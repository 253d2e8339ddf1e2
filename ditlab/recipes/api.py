"""The functions of the Python API: ``ditlab.load``, ``recipe``, ``train`` and ``evaluate``."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ditlab.data.given import given_source, to_uint8
from ditlab.errors import UserError
from ditlab.evaluate import Evaluation
from ditlab.interop.find import find_model
from ditlab.pipelines import Pipeline, SampleConfig
from ditlab.recipes.autoconfigure import autoconfigure
from ditlab.recipes.changes import changed
from ditlab.recipes.evaluate import EvaluationConfig, evaluate_samples
from ditlab.recipes.find import find_recipe
from ditlab.recipes.fine_tune import fine_tuning
from ditlab.recipes.prepare import RunContext
from ditlab.recipes.recipe import Recipe
from ditlab.recipes.run import train_recipe
from ditlab.recipes.samples import open_samples
from ditlab.runtime.console import log_nothing, without_bars
from ditlab.runtime.device import select_device
from ditlab.runtime.distributed import Processes, join
from ditlab.train import Callback

Log = Callable[[str], None]


def load(path: str | Path) -> Pipeline:
    """Load a trained model: ``ditlab.load("fashion").sample()`` returns images.

    Args:
        path: a run folder, a ``model.safetensors``, the name of a shipped model, a folder of a diffusers DiTPipeline, or
            ``user/name`` on the hub.

    Raises:
        UserError: no readable model there.
    """
    return find_model(path)


def recipe(name: str | Path | Recipe, /, **changes: Any) -> Recipe:
    """A recipe, with other values where they are given.

    ``recipe("digits", train={"steps": 100, "lr": 1e-3}, depth=6)``: a field of a section is given in a dictionary of its
    section, or by its name alone if only one section has such a field.

    Args:
        name: of a recipe (digits, fashion, cifar10, folder, imagenet256, ...), a .py file, a run folder, or a recipe.
        changes: other values. ``model`` also takes a name, as DiT-B/2. Steps of training are turned into images. ``init``
            names a model to fine-tune, from which the recipe gets its network, process, autoencoder and sampling.

    Raises:
        UserError: an unknown recipe or field, answered with the nearest, or a value of another type.
    """
    found = name if isinstance(name, Recipe) else find_recipe(str(name))[0]
    if changes.get("init"):
        if isinstance(changes.get("model"), str):
            raise UserError("init has a network of its own; omit model, or change its fields: model={'depth': 6}")
        found = fine_tuning(found, str(changes.pop("init")), open_size=found.name == "folder")
    return changed(found, changes) if changes else found


def train(
    recipe: Recipe | str | Path,
    out: str | Path | None = None,
    *,
    data: Any = None,
    captions: Any = None,
    callbacks: Sequence[Callback] = (),
    device: str | torch.device | None = None,
    log: Log | None = None,
) -> Pipeline:
    """Train a recipe to its end and return the model; a run that was interrupted is resumed from its last checkpoint.

    Under torchrun every process calls this, and they share the work.

    Args:
        recipe: from ``ditlab.recipe``, or what that takes.
        out: the run folder; by default runs/NAME.
        data: images to train on in place of the recipe's: an array (N, H, W) or (N, H, W, C) of uint8 or of floats from 0 to
            1, a tensor (N, C, H, W), a tuple (images, labels), or a map-style data set of PyTorch or Hugging Face
            whose items are images, (image, label) or dictionaries with an image, a label and text. They are not stored; a run
            is resumed with the same images.
        captions: of each image of ``data`` a text, a list of several, or None; by default the text of the dictionaries.
        callbacks: called during the training of the network.
        device: by default the GPU if there is one.
        log: gets lines of text on the progress, as ``print`` does; by default nothing is printed.

    Raises:
        UserError: settings or images that are not possible, or a folder that holds another run.
        Stopped: SIGTERM was received; everything is saved.
    """
    found = recipe if isinstance(recipe, Recipe) else find_recipe(str(recipe))[0]
    for callback in callbacks:
        if not isinstance(callback, Callback):
            raise UserError(f"callback {callback!r} is no ditlab.Callback; derive its class from that")
    open_size, images = found.name == "folder", None
    open_model = open_size and not found.init and found.model == find_recipe("folder")[0].model
    if captions is not None and data is None:
        raise UserError("captions are given without images; give data=images too")
    if data is not None:
        images, open_size = given_source(data, captions, found.data), False
        found = replace(found, data=replace(found.data, source="given", path="", split="train"))
    processes = join(found.train.timeout)
    chosen, write = _device(device, processes), _log(log, processes)
    context = RunContext(
        Path("runs") / found.name if out is None else Path(out), chosen, write, processes,
        callbacks=tuple(callbacks), images=images,
    )  # fmt: skip
    with without_bars():
        return train_recipe(autoconfigure(found, chosen, write, open_size, open_model, context.out), context)


def evaluate(
    samples: Pipeline | str | Path,
    *,
    count: int = 0,
    reference: str | Path = "train",
    data: Any = None,
    recipe: str | Path = "",
    network: str = "efficientnet-lite0",
    weights: str | Path = "",
    guidance: float | None = None,
    steps: int | None = None,
    sampler: str | None = None,
    seed: int = 0,
    batch: int = 64,
    out: str | Path | None = None,
    device: str | torch.device | None = None,
    log: Log | None = None,
) -> Evaluation:
    """Measure samples against real images; results, report and pictures are written as ``ditlab evaluate`` does.

    Args:
        samples: a model from ``ditlab.load`` or ``ditlab.train``, which is read from its file, or its path; a folder of
            images; or an .npz with arr_0.
        count: images to generate, or to draw from a folder or archive; 0 generates 10,000, or takes all there are.
        reference: the real images: train, valid or test, the split of the model's data; a folder or an archive of images; or
            an .npz of images or statistics.
        data: real images as an array (N, H, W) or (N, H, W, C), in place of ``reference``; they are stored with the results.
            Or the path to which the images of the model's data were moved.
        recipe: recipe or run that names the real images, for samples that do not.
        network: feature network, efficientnet-lite0 or inception (the one FID is defined with).
        weights: file of the network's weights; by default the usual ones.
        guidance: scale; like steps and sampler by default as the model says.
        steps: sampling steps.
        sampler: ddpm, ddim, euler, heun or dpm-solver.
        seed: of the samples.
        batch: images generated at a time.
        out: folder of results.jsonl, report.md and pictures; by default next to the samples.
        device: by default the GPU if there is one.
        log: gets lines of text on the progress.

    Raises:
        UserError: samples or real images that are missing, too few, or of other sizes.
    """
    if isinstance(samples, Pipeline):
        if samples.path is None:
            raise UserError("this model is in no file: save it first, model.save(folder), and give the folder")
        samples = samples.path

    def sampling(model: Pipeline) -> SampleConfig:
        config = model.defaults.changed(guidance, steps, sampler)
        model.prepare(config)
        return config

    processes = join()
    chosen, write = _device(device, processes), _log(log, processes)
    with without_bars():
        opened = open_samples(str(samples), count, seed, "proportional", batch, sampling, processes, device=chosen)
        folder = opened.folder if out is None else Path(out)
        moved = str(data) if isinstance(data, str | Path) else ""
        if data is not None and not moved:
            reference = folder / "real.npz"
            processes.broadcast_from_main(lambda: _store(to_uint8(data), reference))
        config = EvaluationConfig(network, str(weights), str(reference), str(recipe), data_path=moved)
        evaluation = evaluate_samples(opened, config, folder, chosen, processes, write)
    return processes.broadcast_from_main(lambda: evaluation)  # type: ignore[return-value]


def _store(images: np.ndarray, path: str | Path) -> None:
    """Write images uint8 (N, H, W, C) as an .npz with arr_0."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez(path, images)


def _device(device: str | torch.device | None, processes: Processes) -> torch.device:
    return select_device("" if device is None else str(device), processes)


def _log(log: Log | None, processes: Processes) -> Log:
    return log if log is not None and processes.is_main else log_nothing
