"""Recipes made real: images, autoencoder, latents, network, training, in this order, each step resumed where it stood."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch

from ditlab.data import Dataset, Images
from ditlab.diffusion import samplers
from ditlab.encoders import Autoencoder, LatentCache, TextEncoder, autoencoder_kind
from ditlab.errors import UserError, check_divisible
from ditlab.models import build, cost
from ditlab.models.network import describe
from ditlab.pipelines import Pipeline
from ditlab.recipes import prepare
from ditlab.recipes.autoconfigure import fit_to_machine
from ditlab.recipes.captions import captions_of, encode_captions, encoded, example_prompts, text_encoder
from ditlab.recipes.fine_tune import load_weights, source_name
from ditlab.recipes.held_out import held_out_data
from ditlab.recipes.prepare import RunContext, cache_folder
from ditlab.recipes.recipe import Recipe, absolute, network_spec, refuse_other
from ditlab.recipes.trained_data import refuse_other_data
from ditlab.train import DiffusionTask, HeldOutLoss, ModelFile, SampleGrid


def _check_size(recipe: Recipe, factor: int, height: int, width: int) -> None:
    least, why = recipe.model.divisor
    unit = factor * least
    check_divisible("images", (height, width), unit, f"{unit} (autoencoder factor {factor} x {why})", " (--data.size)")


def encode_latents(recipe: Recipe, context: RunContext) -> Path:
    """Encode what is missing of the recipe's images, and of their captions where the text encoder is frozen.

    Raises UserError for pixels or a cache of other images or latents.
    """
    if not autoencoder_kind(recipe.autoencoder.kind).latents:
        raise UserError(f"recipe {recipe.name!r} works on pixels: there is nothing to encode")
    recipe.check()
    recipe = absolute(recipe)
    dataset = prepare.open_images(recipe, context, relist=True)
    text = text_encoder(recipe.text, dataset)
    autoencoder = prepare.prepare_autoencoder(recipe, context, dataset.shape[0])
    _check_size(recipe, autoencoder.factor, *dataset.shape[-2:])
    data, folder = prepare.encode_dataset(recipe, context, dataset, autoencoder), cache_folder(recipe, context)
    if text is not None:
        text.to(context.device)
        held_out, _ = held_out_data(recipe, data, folder, context.processes.broadcast_from_main)
        captions, held_out_captions = _captions(data, held_out, dataset)
        encode_captions(recipe, context, [*captions, *held_out_captions], (), text)
    return folder


def build_model(
    recipe: Recipe, autoencoder: Autoencoder, pixels: tuple[int, ...], names: tuple[str, ...],
    text: TextEncoder | None = None,
) -> Pipeline:  # fmt: skip
    """The recipe's model with random weights, for images or clips ``pixels`` (C, *size) and classes ``names``, or captions.

    Raises UserError for sizes that do not divide or settings that are incompatible.
    """
    recipe.check()
    _check_size(recipe, autoencoder.factor, *pixels[-2:])
    spec = network_spec(recipe, autoencoder.latent_shape(pixels[1:]), len(names), text)
    network = build(recipe.model, spec).initialise(torch.Generator().manual_seed(recipe.seed))
    names = names if text is None else ()
    facts: dict[str, object] = {"recipe": recipe.name}
    if recipe.init:
        facts["fine-tuned from"] = source_name(recipe.init)
    model = Pipeline(network, recipe.diffusion, autoencoder, names, recipe.sample, facts, text=text)
    model.check(recipe.sample)
    samplers.check(recipe.sample.sampler, model.denoiser.schedule, recipe.sample.steps)
    return model


def _check_before(recipe: Recipe, dataset: Dataset, text: TextEncoder | None) -> None:
    """Find incompatible settings before hours of reading, of training an autoencoder, and of encoding."""
    config = recipe.autoencoder
    kind = autoencoder_kind(config.kind)
    if (kind.trained and not config.path) or not kind.latents:  # others are loaded, and checked then
        build_model(recipe, kind.build(config, dataset.shape[0], recipe.seed), dataset.shape, dataset.names, text)


def train_recipe(recipe: Recipe, context: RunContext) -> Pipeline:
    """Train a recipe to its end from whatever is done already; returns the finished model.

    Raises UserError for invalid settings, missing data or a full disk; finished work is kept.
    """
    recipe.check()
    recipe.train.check_processes(context.processes.size)
    recipe = absolute(recipe)
    context.processes.broadcast_from_main(lambda: refuse_other(recipe, context.out))
    dataset = prepare.open_images(recipe, context)
    text = text_encoder(recipe.text, dataset)
    if text is not None:
        text.to(context.device)
    context.processes.broadcast_from_main(lambda: refuse_other_data(dataset.info, context.out, text is not None))
    _check_before(recipe, dataset, text)
    with prepare.locked(context.out, "the run", context.processes):
        _train(recipe, context, dataset, text)
    return Pipeline.load(context.out).to(context.device)


def _readable_classes(dataset: Dataset, labels: np.ndarray, log: prepare.Log) -> tuple[int, ...]:
    """Images of each class among those that could be read; logs the classes that have none left."""
    if not dataset.names:
        return ()
    counts = tuple(np.bincount(labels, minlength=len(dataset.names)).tolist())
    changes = zip(dataset.names, dataset.info.counts, counts, strict=True)
    lost = [name for name, listed, readable in changes if listed > readable == 0]
    if lost:
        log(f"classes without readable images, never sampled: {', '.join(lost)}")
    return counts


def _captions(
    data: Images | LatentCache, held_out: Images | LatentCache, dataset: Dataset
) -> tuple[Sequence[tuple[str, ...]], Sequence[tuple[str, ...]]]:
    """The captions of the images, and of those that are held out."""
    captions = captions_of(data, dataset)
    return captions, captions if isinstance(held_out, LatentCache) else held_out.captions or ()


def _train(recipe: Recipe, context: RunContext, dataset: Dataset, text: TextEncoder | None) -> None:
    data: Images | LatentCache
    if autoencoder_kind(recipe.autoencoder.kind).latents:
        autoencoder = prepare.prepare_autoencoder(recipe, context, dataset.shape[0])
        model = build_model(recipe, autoencoder, dataset.shape, dataset.names, text)
        data = prepare.encode_dataset(recipe, context, dataset, autoencoder)
    else:
        data = prepare.load_images(dataset, context)
        given = prepare.initial_autoencoder(recipe, context, dataset.shape[0])
        autoencoder = prepare.pixel_autoencoder(data) if given is None else given
        model = build_model(recipe, autoencoder, dataset.shape, dataset.names, text)
    if text is None:
        model.counts = _readable_classes(dataset, data.labels, context.log)
    count = cost(recipe.model, model.network.spec)
    tokens = f"{count.tokens} tokens, " if count.tokens else ""
    context.log(
        f"{recipe.model.kind}: {count.total_parameters:,} parameters, {tokens}{count.gmacs:.4g} GMACs a sample; "
        f"batch {recipe.train.batch}, {recipe.train.precision_on(context.device)}, {context.device}"
    )
    loss = recipe.diffusion.build_loss()
    held_out, what = held_out_data(recipe, data, cache_folder(recipe, context), context.processes.broadcast_from_main)
    captions, held_out_captions, cache = (), (), None
    if text is not None:
        captions, held_out_captions = _captions(data, held_out, dataset)
        model.prompts = tuple(example_prompts(held_out_captions))
        cache = encode_captions(recipe, context, [*captions, *held_out_captions], model.prompts, text)
    task = DiffusionTask(model.network, loss, autoencoder, data, encoded(captions, text, cache))
    recipe, first_picture = fit_to_machine(recipe, task, context.out, context.device, context.processes, context.log)
    context.processes.broadcast_from_main(lambda: prepare.save_settings(recipe, dataset, context.out))
    callbacks = [
        HeldOutLoss(DiffusionTask(model.network, loss, autoencoder, held_out, encoded(held_out_captions, text, cache))),
        SampleGrid(model, recipe.sample_images, recipe.seed),
        ModelFile(model),
        *context.callbacks,
    ]
    facts = {
        "data": dataset.describe() + (f", {len(data.skipped):,} skipped" if data.skipped else ""),
        "autoencoder": f"{recipe.autoencoder.kind}, factor {autoencoder.factor}",
        "network": describe(recipe.model),
        "parameters": f"{count.total_parameters:,}",
        **({"fine-tuned from": source_name(recipe.init)} if recipe.init else {}),
        "GMACs a sample": f"{count.gmacs:.4g}",
        "diffusion": f"{recipe.diffusion.schedule}, {recipe.diffusion.target}, times {recipe.diffusion.times}",
        "batch, rate, EMA": f"{recipe.train.batch}, {recipe.train.lr:g}, {recipe.train.ema:g}",
        "held-out loss is of": what,
        "samples": f"{recipe.sample.sampler}, {recipe.sample.steps} steps, guidance {recipe.sample.guidance.scale:g}",
    }
    name = recipe.name
    prepare.train_and_report(
        recipe, context, task, callbacks, facts, command="train", what="model", title=name, heading=name,
        first_picture=first_picture,
        begin=partial(load_weights, recipe, model, context.log) if recipe.init else None,
    )  # fmt: skip
