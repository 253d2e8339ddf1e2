"""Recipes made real: images, autoencoder, latents, network, training, in this order, each step resumed where it stood."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from ditlab.data import Dataset, Images, open_data
from ditlab.diffusion import build_loss, samplers
from ditlab.errors import UserError
from ditlab.latents import (
    Autoencoder,
    ChannelStatistics,
    LatentCache,
    encode,
    identity,
    load_pretrained,
    new_kl,
    record,
    to_unit,
)
from ditlab.models import DiT, NetworkInput, cost
from ditlab.recipes.recipe import Recipe, refuse_other, save_recipe
from ditlab.sample import Model
from ditlab.train import AutoencoderObjective, DiffusionObjective, progress_bar, train, write_report

Say = Callable[[str], None]
AUTOENCODER_PARTS = ("seed", "data.", "autoencoder.", "train.")  # of a recipe, what makes its autoencoder


@dataclass(frozen=True)
class Place:
    """Where a recipe's results go and who is told.

    Attributes:
        out: the run folder.
        device: where to compute.
        say: tells a person something, in one line.
    """

    out: Path
    device: torch.device
    say: Say

    def beside(self, name: str) -> Path:
        """A folder beside the run: RUN-autoencoder, RUN-latents."""
        return self.out.with_name(f"{self.out.name}-{name}")


def default_device() -> torch.device:
    """The first GPU, or the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def _open(recipe: Recipe, place: Place) -> Dataset:
    dataset = open_data(recipe.data)
    place.say(dataset.describe())
    return dataset


def _load(dataset: Dataset, say: Say) -> Images:
    with progress_bar() as bar:
        task = bar.add_task("reading images", total=len(dataset), rate="")
        images = dataset.load(lambda done, total: bar.update(task, completed=done, total=total))
    _tell_left_out(images.left_out, say)
    return images


def _tell_left_out(left_out: tuple[str, ...], say: Say) -> None:
    if left_out:
        shown = "; ".join(left_out[:3]) + ("; ..." if len(left_out) > 3 else "")
        say(f"{len(left_out):,} image{'s' * (len(left_out) != 1)} left out, unreadable: {shown}")


def _check_size(recipe: Recipe, factor: int, height: int, width: int) -> None:
    unit = factor * recipe.model.patch
    for side in (height, width):
        if side % unit:
            below = side // unit * unit
            sizes = f"{below} or {below + unit}" if below else str(unit)
            raise UserError(
                f"images of {height}x{width} are not divisible by {unit} (autoencoder factor {factor} x patch "
                f"{recipe.model.patch}); nearest sizes for {side}: {sizes} (--data.size)"
            )


def _check_channels(autoencoder: Autoencoder, dataset: Dataset) -> None:
    if autoencoder.channels != dataset.shape[0]:
        raise UserError(
            f"the autoencoder takes {autoencoder.channels} channels, the images have {dataset.shape[0]}; "
            f"set --data.channels {autoencoder.channels}"
        )


def autoencoder_folder(recipe: Recipe, place: Place) -> Path:
    """Where the recipe's own autoencoder is, or will be."""
    return Path(recipe.autoencoder.path) if recipe.autoencoder.path else place.beside("autoencoder")


def _autoencoder_recipe(recipe: Recipe) -> Recipe:
    """What goes into the autoencoder's folder: trained as it was, and found there whatever the path was."""
    return replace(recipe, train=recipe.autoencoder_train, autoencoder=replace(recipe.autoencoder, path=""))


def train_autoencoder(recipe: Recipe, place: Place) -> Path:
    """Train the recipe's KL autoencoder into its folder; a finished one is left as it is.

    Raises:
        UserError: the recipe has no autoencoder to train, or data or disk are in the way.
    """
    if recipe.autoencoder.kind != "kl":
        raise UserError(
            f"recipe {recipe.name!r} has no autoencoder to train: its kind is {recipe.autoencoder.kind!r}, not 'kl'"
        )
    recipe.check()
    folder = autoencoder_folder(recipe, place)
    refuse_other(_autoencoder_recipe(recipe), folder, AUTOENCODER_PARTS)
    dataset = _open(recipe, place)
    channels, height, width = dataset.shape
    autoencoder = new_kl(recipe.autoencoder, channels, recipe.seed)
    latent = autoencoder.latent_shape(height, width)
    save_recipe(_autoencoder_recipe(recipe), folder)
    images = _load(dataset, place.say)
    parameters = sum(parameter.numel() for parameter in autoencoder.parameters())
    place.say(f"autoencoder: {channels}x{height}x{width} to {'x'.join(map(str, latent))}, {parameters:,} parameters")
    held_out, what = _held_out(recipe, images)
    objective = AutoencoderObjective(autoencoder, images, held_out, recipe.autoencoder.kl_weight)
    train(
        objective,
        recipe.autoencoder_train,
        seed=recipe.seed,
        flip=recipe.data.flip,
        folder=folder,
        device=place.device,
        say=place.say,
        title="autoencoder",
    )
    facts = {
        "data": dataset.describe(),
        "latent": f"{'x'.join(map(str, latent))}, from {channels}x{height}x{width}",
        "parameters": f"{parameters:,}",
        "PSNR is of": what,
    }
    command = f"ditlab autoencoder {folder / 'recipe.json'} --out {place.out}"
    report = write_report(folder, f"Autoencoder of {recipe.name}", command, facts)
    place.say(f"autoencoder: {folder}, report: {report}")
    return folder


def _held_out(recipe: Recipe, images: Images) -> tuple[Images, str]:
    """Images to measure reconstruction on: of the test split where the data has one."""
    try:
        held_out = open_data(replace(recipe.data, split="test", limit=1000)).load()
    except UserError:
        first = slice(0, 1000)
        few = replace(images, pixels=images.pixels[first], labels=images.labels[first])
        return few, f"{len(few):,} training images: the data has no test split"
    return held_out, f"{len(held_out):,} images of the test split"


def _pixel_statistics(images: Images) -> tuple[torch.Tensor, torch.Tensor]:
    statistics = ChannelStatistics(images.shape[0])
    for start in range(0, len(images), 4096):
        statistics.add(to_unit(images.pixels[start : start + 4096]))
    return statistics.result()


def prepare_autoencoder(recipe: Recipe, place: Place) -> Autoencoder:
    """The recipe's learned autoencoder: pretrained, trained before, or trained now.

    Raises:
        UserError: it cannot be had.
    """
    if recipe.autoencoder.kind == "pretrained":
        return load_pretrained(recipe.autoencoder.path, recipe.autoencoder.subfolder)
    folder = autoencoder_folder(recipe, place)
    if not (folder / "report.md").exists():
        train_autoencoder(recipe, place)
    elif not recipe.autoencoder.path:  # one that was asked for by its path may have been made in any way
        refuse_other(_autoencoder_recipe(recipe), folder, AUTOENCODER_PARTS)
    return record.load(folder)


def encode_latents(recipe: Recipe, place: Place) -> Path:
    """Encode the recipe's images into its cache; does only what is missing.

    Raises:
        UserError: the recipe works on pixels, or a cache of other things is in the place.
    """
    if recipe.autoencoder.kind == "pixels":
        raise UserError(f"recipe {recipe.name!r} works on pixels: there is nothing to encode")
    recipe.check()
    dataset = _open(recipe, place)
    autoencoder = prepare_autoencoder(recipe, place)
    _check_channels(autoencoder, dataset)
    _check_size(recipe, autoencoder.factor, *dataset.shape[1:])
    _encode(recipe, place, dataset, autoencoder)
    return _cache_folder(recipe, place)


def _cache_folder(recipe: Recipe, place: Place) -> Path:
    return Path(recipe.latents) if recipe.latents else place.beside("latents")


def _encode(recipe: Recipe, place: Place, dataset: Dataset, autoencoder: Autoencoder) -> LatentCache:
    folder = _cache_folder(recipe, place)
    with progress_bar() as bar:
        task = bar.add_task("encoding", total=len(dataset), rate="")
        left_out = encode(
            dataset,
            autoencoder,
            folder,
            flip=recipe.data.flip,
            device=place.device,
            progress=lambda done, total: bar.update(task, completed=done, total=total),
        )
    _tell_left_out(left_out, place.say)
    cache = LatentCache(folder, identity(dataset, autoencoder, recipe.data.flip))
    place.say(f"latents: {len(cache):,} of {'x'.join(map(str, cache.shape))} in {folder}")
    return cache


def build_model(
    recipe: Recipe, autoencoder: Autoencoder, pixels: tuple[int, int, int], names: tuple[str, ...]
) -> Model:
    """The recipe's model with fresh weights.

    Raises:
        UserError: sizes that do not divide, or parts that do not go together.
    """
    recipe.check()
    _check_size(recipe, autoencoder.factor, *pixels[1:])
    channels, height, width = autoencoder.latent_shape(*pixels[1:])
    classes = len(names)
    shape = NetworkInput(
        channels=channels,
        height=height,
        width=width,
        classes=classes,
        learned_variance=recipe.diffusion.learned_variance,
        null_class=classes == 0 or recipe.diffusion.label_dropout > 0,
    )
    network = DiT(recipe.model, shape).initialise(torch.Generator().manual_seed(recipe.seed))
    model = Model(network, recipe.diffusion, autoencoder, pixels, names, recipe.sample, {"recipe": recipe.name})
    model.check(recipe.sample)
    samplers.check(recipe.sample.sampler, model.denoiser.schedule, recipe.sample.steps)
    return model


def _check_before(recipe: Recipe, dataset: Dataset) -> None:
    """Find what does not go together before hours of reading, of training an autoencoder, and of encoding."""
    config, channels = recipe.autoencoder, dataset.shape[0]
    if config.kind == "pixels":
        build_model(recipe, Autoencoder(channels, channels, 1), dataset.shape, dataset.names)
    elif config.kind == "kl" and not config.path:
        build_model(recipe, new_kl(config, channels, recipe.seed), dataset.shape, dataset.names)


def train_recipe(recipe: Recipe, place: Place) -> Model:
    """Train a recipe to its end, whatever of it is there already; gives the finished model.

    Raises:
        UserError: settings, data or disk are in the way; nothing that stood is lost.
    """
    recipe.check()
    refuse_other(recipe, place.out)
    dataset = _open(recipe, place)
    _check_before(recipe, dataset)
    data: Images | LatentCache
    if recipe.autoencoder.kind == "pixels":
        data = _load(dataset, place.say)
        autoencoder = Autoencoder(dataset.shape[0], dataset.shape[0], 1)
        autoencoder.set_statistics(*(value.float() for value in _pixel_statistics(data)))
        model = build_model(recipe, autoencoder, dataset.shape, dataset.names)
    else:
        autoencoder = prepare_autoencoder(recipe, place)
        _check_channels(autoencoder, dataset)
        model = build_model(recipe, autoencoder, dataset.shape, dataset.names)
        data = _encode(recipe, place, dataset, autoencoder)
    save_recipe(recipe, place.out)
    count = cost(recipe.model, model.network.input)
    place.say(
        f"DiT: {count.total_parameters:,} parameters, {count.tokens} tokens, {count.gmacs:.4g} GMACs a sample; "
        f"batch {recipe.train.batch}, {recipe.train.precision_on(place.device)}, {place.device}"
    )
    loss = build_loss(recipe.diffusion)
    objective = DiffusionObjective(model.network, loss, autoencoder, data, model, recipe.sample_images, recipe.seed)
    train(
        objective,
        recipe.train,
        seed=recipe.seed,
        flip=recipe.data.flip,
        folder=place.out,
        device=place.device,
        say=place.say,
        title=recipe.name,
    )
    facts = {
        "data": dataset.describe(),
        "autoencoder": f"{recipe.autoencoder.kind}, factor {autoencoder.factor}",
        "network": f"depth {recipe.model.depth}, width {recipe.model.width}, patch {recipe.model.patch}, {recipe.model.block}",
        "parameters": f"{count.total_parameters:,}",
        "GMACs a sample": f"{count.gmacs:.4g}",
        "diffusion": f"{recipe.diffusion.schedule}, {recipe.diffusion.target}, times {recipe.diffusion.times}",
        "batch, rate, EMA": f"{recipe.train.batch}, {recipe.train.rate:g}, {recipe.train.ema:g}",
        "samples": f"{recipe.sample.sampler}, {recipe.sample.steps} steps, guidance {recipe.sample.guidance.scale:g}",
    }
    report = write_report(place.out, recipe.name, f"ditlab train {place.out}", facts)
    place.say(f"model: {place.out}, report: {report}")
    return Model.load(place.out).to(place.device)
