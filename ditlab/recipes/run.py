"""Recipes made real: images, autoencoder, latents, network, training, in this order, each step resumed where it stood."""

from __future__ import annotations

from pathlib import Path

import torch

from ditlab.data import Dataset, Images
from ditlab.diffusion import samplers
from ditlab.encoders import Autoencoder, LatentCache, autoencoder_kind
from ditlab.errors import UserError, check_divisible
from ditlab.models import LatentSpec, build, cost, labelled
from ditlab.models.network import describe
from ditlab.pipelines import Pipeline
from ditlab.recipes.held_out import held_out_data
from ditlab.recipes.prepare import (
    RunContext,
    cache_folder,
    encode_dataset,
    load_images,
    locked,
    open_images,
    pixel_autoencoder,
    prepare_autoencoder,
)
from ditlab.recipes.recipe import Recipe, refuse_other, save_recipe
from ditlab.train import DiffusionTask, HeldOutLoss, ModelFile, SampleGrid, train, write_report


def _check_size(recipe: Recipe, factor: int, height: int, width: int) -> None:
    least, why = recipe.model.divisor
    unit = factor * least
    why = f"{unit} (autoencoder factor {factor} x {why})"
    check_divisible("images", (height, width), unit, why, " (--data.size)")


def _check_channels(autoencoder: Autoencoder, dataset: Dataset) -> None:
    if autoencoder.channels != dataset.shape[0]:
        raise UserError(
            f"the autoencoder takes {autoencoder.channels} channels, the images have {dataset.shape[0]}; "
            f"set --data.channels {autoencoder.channels}"
        )


def encode_latents(recipe: Recipe, place: RunContext) -> Path:
    """Encode the recipe's images into its cache; does only what is missing.

    Raises:
        UserError: the recipe works on pixels, or a cache of other things is in the place.
    """
    if not autoencoder_kind(recipe.autoencoder.kind).latents:
        raise UserError(f"recipe {recipe.name!r} works on pixels: there is nothing to encode")
    recipe.check()
    dataset = open_images(recipe, place, relist=True)
    autoencoder = prepare_autoencoder(recipe, place)
    _check_channels(autoencoder, dataset)
    _check_size(recipe, autoencoder.factor, *dataset.shape[1:])
    encode_dataset(recipe, place, dataset, autoencoder)
    return cache_folder(recipe, place)


def build_model(
    recipe: Recipe, autoencoder: Autoencoder, pixels: tuple[int, int, int], names: tuple[str, ...]
) -> Pipeline:
    """The recipe's model with fresh weights.

    Raises:
        UserError: sizes that do not divide, or parts that do not go together.
    """
    recipe.check()
    _check_size(recipe, autoencoder.factor, *pixels[1:])
    channels, *size = autoencoder.latent_shape(pixels[1:])
    spec = labelled(
        LatentSpec(channels, tuple(size)),
        len(names),
        null=recipe.diffusion.condition_dropout > 0,
        learned_variance=recipe.diffusion.learned_variance,
    )
    network = build(recipe.model, spec).initialise(torch.Generator().manual_seed(recipe.seed))
    model = Pipeline(network, recipe.diffusion, autoencoder, names, recipe.sample, {"recipe": recipe.name})
    model.check(recipe.sample)
    samplers.check(recipe.sample.sampler, model.denoiser.schedule, recipe.sample.steps)
    return model


def _check_before(recipe: Recipe, dataset: Dataset) -> None:
    """Find what does not go together before hours of reading, of training an autoencoder, and of encoding."""
    config = recipe.autoencoder
    kind = autoencoder_kind(config.kind)
    if (kind.trained and not config.path) or not kind.latents:  # others are loaded, and checked then
        build_model(recipe, kind.build(config, dataset.shape[0], recipe.seed), dataset.shape, dataset.names)


def train_recipe(recipe: Recipe, place: RunContext) -> Pipeline:
    """Train a recipe to its end, whatever of it is there already; gives the finished model.

    Raises:
        UserError: settings, data or disk are in the way; nothing that stood is lost.
    """
    recipe.check()
    recipe.train.check_processes(place.processes.size)
    place.processes.broadcast_from_main(lambda: refuse_other(recipe, place.out))
    dataset = open_images(recipe, place)
    _check_before(recipe, dataset)
    with locked(place.out, "the run", place.processes):
        _train(recipe, place, dataset)
    return Pipeline.load(place.out).to(place.device)


def _train(recipe: Recipe, place: RunContext, dataset: Dataset) -> None:
    data: Images | LatentCache
    if not autoencoder_kind(recipe.autoencoder.kind).latents:
        data = load_images(dataset, place)
        autoencoder = pixel_autoencoder(data)
        model = build_model(recipe, autoencoder, dataset.shape, dataset.names)
    else:
        autoencoder = prepare_autoencoder(recipe, place)
        _check_channels(autoencoder, dataset)
        model = build_model(recipe, autoencoder, dataset.shape, dataset.names)
        data = encode_dataset(recipe, place, dataset, autoencoder)
    place.processes.broadcast_from_main(lambda: save_recipe(recipe, place.out))
    count = cost(recipe.model, model.network.spec)
    tokens = f"{count.tokens} tokens, " if count.tokens else ""
    place.log(
        f"{recipe.model.kind}: {count.total_parameters:,} parameters, {tokens}{count.gmacs:.4g} GMACs a sample; "
        f"batch {recipe.train.batch}, {recipe.train.precision_on(place.device)}, {place.device}"
    )
    loss = recipe.diffusion.build_loss()
    task = DiffusionTask(model.network, loss, autoencoder, data)
    held_out, what = held_out_data(recipe, data, cache_folder(recipe, place), place.processes.broadcast_from_main)
    callbacks = [
        HeldOutLoss(DiffusionTask(model.network, loss, autoencoder, held_out)),
        SampleGrid(model, recipe.sample_images, recipe.seed),
        ModelFile(model),
    ]
    train(
        task,
        recipe.train,
        seed=recipe.seed,
        flip=recipe.data.flip,
        folder=place.out,
        device=place.device,
        log=place.log,
        title=recipe.name,
        callbacks=callbacks,
        processes=place.processes,
        profile=place.profile,
    )
    facts = {
        "data": dataset.describe() + (f", {len(data.skipped):,} skipped" if data.skipped else ""),
        "autoencoder": f"{recipe.autoencoder.kind}, factor {autoencoder.factor}",
        "network": describe(recipe.model),
        "parameters": f"{count.total_parameters:,}",
        "GMACs a sample": f"{count.gmacs:.4g}",
        "diffusion": f"{recipe.diffusion.schedule}, {recipe.diffusion.target}, times {recipe.diffusion.times}",
        "batch, rate, EMA": f"{recipe.train.batch}, {recipe.train.lr:g}, {recipe.train.ema:g}",
        "held-out loss is of": what,
        "samples": f"{recipe.sample.sampler}, {recipe.sample.steps} steps, guidance {recipe.sample.guidance.scale:g}",
    }
    report = place.processes.broadcast_from_main(
        lambda: write_report(place.out, recipe.name, f"ditlab train {place.out}", facts)
    )
    place.log(f"model: {place.out}, report: {report}")
