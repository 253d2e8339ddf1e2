"""What a network trains on: the images of a recipe, its autoencoder, and the latents."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch
from rich.progress import TaskID

from ditlab.data import DataInfo, Dataset, Images, open_data, read_index, write_index
from ditlab.encoders import (
    Autoencoder,
    ChannelStatistics,
    LatentCache,
    autoencoder_kind,
    cache_key,
    encode,
    encode_remote,
    is_complete,
    is_url,
    new_kl,
    record,
    uint8_to_float,
)
from ditlab.recipes.held_out import encode_held_out, held_out_images
from ditlab.recipes.recipe import AutoencoderRecipe, Recipe, refuse_other, save_recipe
from ditlab.runtime import files
from ditlab.runtime.console import progress_bar
from ditlab.runtime.distributed import ALONE, Processes
from ditlab.train import (
    AutoencoderFile,
    AutoencoderTask,
    HeldOutLoss,
    Reconstructions,
    TrainConfig,
    train,
    write_report,
)
from ditlab.train.checkpoint import existing

Log = Callable[[str], None]
INDEX = "index.json"  # in a cache's folder: what a start needs to know of the images


@dataclass(frozen=True)
class RunContext:
    """Where and how a recipe runs.

    Attributes:
        out: the run folder.
        device: to compute on.
        log: writes one line to the console.
        processes: share the work.
        profile: write a profile of training steps.
    """

    out: Path
    device: torch.device
    log: Log
    processes: Processes = ALONE
    profile: bool = False

    def beside(self, name: str) -> Path:
        """A folder next to the run: RUN-autoencoder, RUN-latents."""
        out = self.out.resolve() if self.out.name in ("", "..") else self.out
        return out.with_name(f"{out.name}-{name}")


@contextmanager
def locked(folder: Path, what: str, processes: Processes) -> Iterator[None]:
    """Lock a folder for the processes of this run.

    Raises:
        UserError: another run has locked it.
    """
    with ExitStack() as stack:
        processes.broadcast_from_main(lambda: stack.enter_context(files.locked(folder, what)))
        yield


def open_images(recipe: Recipe | AutoencoderRecipe, place: RunContext, relist: bool = False) -> Dataset:
    """The recipe's images; logs their description.

    With a finished latent cache the description is read from the cache's index and no image file is listed or opened,
    unless ``relist``. Otherwise the main process lists the files for all.
    """
    once = place.processes.broadcast_from_main
    info = None if relist or isinstance(recipe, AutoencoderRecipe) else once(lambda: _indexed(recipe, place))
    dataset = open_data(recipe.data, once, info)
    place.log(dataset.describe())
    return dataset


def _indexed(recipe: Recipe, place: RunContext) -> DataInfo | None:
    folder = cache_folder(recipe, place)
    return read_index(folder / INDEX, recipe.data) if is_complete(folder) else None


def load_images(dataset: Dataset, place: RunContext) -> Images:
    """All images in memory; logs the skipped ones."""
    with progress_bar(shown=place.processes.is_main) as bar:
        task = bar.add_task("reading images", total=len(dataset), rate="")
        images = dataset.load(lambda done, total: bar.update(task, completed=done, total=total))
    _log_skipped(images.skipped, place.log)
    return images


def _log_skipped(skipped: tuple[str, ...], log: Log) -> None:
    if skipped:
        shown = "; ".join(skipped[:3]) + ("; ..." if len(skipped) > 3 else "")
        log(f"{len(skipped):,} unreadable image{'s' * (len(skipped) != 1)} skipped: {shown}")


def autoencoder_folder(recipe: Recipe, place: RunContext) -> Path:
    """Folder of the recipe's KL autoencoder."""
    return Path(recipe.autoencoder.path) if recipe.autoencoder.path else place.beside("autoencoder")


def train_autoencoder(recipe: AutoencoderRecipe, place: RunContext) -> None:
    """Train a KL autoencoder into ``place.out``; a finished one stays as it is.

    Raises:
        UserError: the recipe is of another kind of autoencoder, the folder holds another run, or the disk is full.
    """
    recipe.check()
    place.processes.broadcast_from_main(lambda: refuse_other(recipe, place.out))
    with locked(place.out, "the autoencoder", place.processes):
        _train_autoencoder(recipe, place)


def train_own_autoencoder(recipe: Recipe, place: RunContext) -> None:
    """Train the autoencoder of a model's recipe next to the run, or where ``autoencoder.path`` names.

    Raises:
        UserError: as ``train_autoencoder``.
    """
    recipe.check()
    train_autoencoder(recipe.autoencoder_recipe(), replace(place, out=autoencoder_folder(recipe, place)))


def _train_autoencoder(recipe: AutoencoderRecipe, place: RunContext) -> None:
    dataset = open_images(recipe, place)
    autoencoder = new_kl(recipe.autoencoder, dataset.shape[0], recipe.seed)
    latent = autoencoder.latent_shape(dataset.shape[1:])
    from_to = f"{'x'.join(map(str, dataset.shape))} to {'x'.join(map(str, latent))}"
    place.processes.broadcast_from_main(lambda: save_recipe(recipe, place.out))
    images = load_images(dataset, place)
    parameters = sum(parameter.numel() for parameter in autoencoder.parameters())
    place.log(f"autoencoder: {from_to}, {parameters:,} parameters")
    held_out, what = held_out_images(recipe, images, 1000, place.processes.broadcast_from_main)
    kl_weight = recipe.autoencoder.kl_weight
    callbacks = [
        HeldOutLoss(AutoencoderTask(autoencoder, held_out, kl_weight)), Reconstructions(held_out), AutoencoderFile(images)
    ]  # fmt: skip
    train(
        AutoencoderTask(autoencoder, images, kl_weight),
        recipe.train,
        seed=recipe.seed,
        flip=recipe.data.flip,
        folder=place.out,
        device=place.device,
        log=place.log,
        title="autoencoder",
        callbacks=callbacks,
        processes=place.processes,
        profile=place.profile,
    )
    facts = {
        "data": dataset.describe(),
        "image to latent": from_to,
        "parameters": f"{parameters:,}",
        "PSNR and held-out loss are of": what,
    }
    command = f"ditlab autoencoder {place.out}"
    report = place.processes.broadcast_from_main(
        lambda: write_report(place.out, f"Autoencoder of {recipe.name}", command, facts)
    )
    place.log(f"autoencoder: {place.out}, report: {report}")


def pixel_autoencoder(images: Images) -> Autoencoder:
    """The identity autoencoder, normalised by the statistics of these images."""
    statistics = ChannelStatistics(images.shape[0])
    for start in range(0, len(images), 4096):
        statistics.add(uint8_to_float(images.pixels[start : start + 4096]))
    autoencoder = Autoencoder(images.shape[0], images.shape[0], 1)
    autoencoder.set_statistics(*(value.float() for value in statistics.result()))
    return autoencoder


def prepare_autoencoder(recipe: Recipe, place: RunContext) -> Autoencoder:
    """The recipe's learned autoencoder: pretrained, trained earlier, or trained now.

    Raises:
        UserError: it cannot be loaded or trained.
    """
    kind = autoencoder_kind(recipe.autoencoder.kind)
    if not kind.trained:
        return kind.build(recipe.autoencoder, 0, recipe.seed)  # it has channels of its own
    folder, training = autoencoder_folder(recipe, place), recipe.autoencoder_recipe()
    own = not recipe.autoencoder.path  # with a path the autoencoder may come from any recipe
    if place.processes.broadcast_from_main(lambda: _to_train(training, folder, own)):
        train_own_autoencoder(recipe, place)
    return record.load(folder)


def _to_train(recipe: AutoencoderRecipe, folder: Path, own: bool) -> bool:
    if own and (folder / "recipe.json").exists():
        refuse_other(recipe, folder)
    return not (folder / record.RECORD).exists() or (own and not _finished(recipe.train, folder))


def _finished(config: TrainConfig, folder: Path) -> bool:
    """Whether an autoencoder's last checkpoint is the end of its training, and its report, written after it, exists."""
    last = [int(done.name) for done in existing(folder / "checkpoints")][-1:]
    return last == [config.steps * config.batch] and (folder / "report.md").exists()


def cache_folder(recipe: Recipe, place: RunContext) -> Path:
    """Folder of the recipe's latents; for latents at a URL, of their local copy."""
    return Path(recipe.latents) if recipe.latents and not is_url(recipe.latents) else place.beside("latents")


def encode_dataset(recipe: Recipe, place: RunContext, dataset: Dataset, autoencoder: Autoencoder) -> LatentCache:
    """Encode the images that are missing in the recipe's cache, and open it.

    Raises:
        UserError: the folder holds a cache of other images or another autoencoder, no image can be read, the disk is full,
            or the URL cannot be reached.
    """
    folder, flip = cache_folder(recipe, place), recipe.data.flip
    with locked(folder, "the latents", place.processes), progress_bar(shown=place.processes.is_main) as bar:
        tasks: dict[str, TaskID] = {}

        def show(what: str, done: int, total: int) -> None:
            if what not in tasks:
                tasks[what] = bar.add_task(what, rate="")
            bar.update(tasks[what], completed=done, total=total)

        if is_url(recipe.latents):
            skipped = encode_remote(
                recipe.latents, dataset, autoencoder, folder, flip=flip, device=place.device, progress=show,
                processes=place.processes,
            )  # fmt: skip
        else:
            skipped = encode(
                dataset, autoencoder, folder, flip=flip, device=place.device, progress=partial(show, "encoding"),
                processes=place.processes,
            )  # fmt: skip
        place.processes.broadcast_from_main(lambda: _update_index(folder / INDEX, dataset))
        place.processes.broadcast_from_main(lambda: encode_held_out(recipe, folder, autoencoder, place.device))
    _log_skipped(skipped, place.log)
    cache = LatentCache(folder, cache_key(dataset, autoencoder, flip))
    at = f", a copy of {recipe.latents}" if is_url(recipe.latents) else ""
    place.log(f"latents: {len(cache):,} of {'x'.join(map(str, cache.shape))} in {folder}{at}")
    return cache


def _update_index(path: Path, dataset: Dataset) -> None:
    if dataset.listed and read_index(path, dataset.config) != dataset.info:
        write_index(path, dataset)
