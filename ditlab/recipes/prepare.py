"""What a network trains on: the images of a recipe, its autoencoder, and the latents."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch
from rich.progress import TaskID

from ditlab import encoders
from ditlab.data import DataInfo, Dataset, Images, open_data, read_index, write_index
from ditlab.data.captions import HINT as CAPTIONS_UNUSED
from ditlab.data.source import Source
from ditlab.encoders import Autoencoder, LatentCache, record
from ditlab.errors import UserError
from ditlab.recipes.autoconfigure import fit_to_machine
from ditlab.recipes.find import DATA
from ditlab.recipes.fine_tune import copy_autoencoder
from ditlab.recipes.held_out import encode_held_out, held_out_images
from ditlab.recipes.recipe import AutoencoderRecipe, Recipe, absolute, refuse_other, save_recipe
from ditlab.recipes.trained_data import refuse_other_data, save_data
from ditlab.runtime import files
from ditlab.runtime.console import progress_bar
from ditlab.runtime.distributed import ALONE, Processes
from ditlab.train import HeldOutLoss, Task, TrainConfig, train, write_report
from ditlab.train.callbacks import AutoencoderFile, Callback, Reconstructions
from ditlab.train.checkpoint import existing
from ditlab.train.tasks import AutoencoderTask

Log = Callable[[str], None]
INDEX = "index.json"  # in a cache's folder: what a start needs to know of the images


@dataclass(frozen=True)
class RunContext:
    """Where and how a recipe runs: the run folder, the device, the console's log, processes that share the work.

    With ``profile``, a profile of training steps is written. ``callbacks`` are the user's, of the network's training;
    ``images``, given in Python, replace those of the recipe.
    """

    out: Path
    device: torch.device
    log: Log
    processes: Processes = ALONE
    profile: bool = False
    callbacks: tuple[Callback, ...] = ()
    images: Source | None = None

    def sibling(self, name: str) -> Path:
        """A folder next to the run: RUN-autoencoder, RUN-latents, RUN-captions."""
        out = self.out.resolve() if self.out.name in ("", "..") else self.out
        return out.with_name(f"{out.name}-{name}")


@contextmanager
def locked(folder: Path, what: str, processes: Processes) -> Iterator[None]:
    """Lock a folder for the processes of this run; raises UserError if another run has locked it."""
    with ExitStack() as stack:
        processes.broadcast_from_main(lambda: stack.enter_context(files.locked(folder, what)))
        yield


def open_images(recipe: Recipe | AutoencoderRecipe, context: RunContext, relist: bool = False) -> Dataset:
    """The recipe's images; logs their description.

    With a finished latent cache the description is read from the cache's index and no image file is listed or opened,
    unless ``relist``. Otherwise the main process lists the files for all.
    """
    if context.images is not None:
        dataset = Dataset(context.images, recipe.data)
        context.log(dataset.describe())
        return dataset
    once = context.processes.broadcast_from_main
    info = None if relist or isinstance(recipe, AutoencoderRecipe) else once(lambda: _indexed(recipe, context))
    try:
        dataset = open_data(recipe.data, once, info)
    except UserError as error:
        path = Path(recipe.data.path).expanduser()
        if recipe.name not in DATA or (recipe.data.path and path.exists()):
            raise
        raise UserError(f"{error}; {DATA[recipe.name]}") from error
    used = isinstance(recipe, Recipe) and recipe.text.kind != "none"
    for line in (dataset.describe(), *dataset.info.notes):
        if line != CAPTIONS_UNUSED or not used:
            context.log(line)
    return dataset


def _indexed(recipe: Recipe, context: RunContext) -> DataInfo | None:
    folder = cache_folder(recipe, context)
    return read_index(folder / INDEX, recipe.data) if encoders.is_complete(folder) else None


def load_images(dataset: Dataset, context: RunContext) -> Images:
    """All images in memory; logs the skipped ones."""
    with progress_bar(shown=context.processes.is_main) as bar:
        task = bar.add_task("reading images", total=len(dataset), rate="")
        images = dataset.load(lambda done, total: bar.update(task, completed=done, total=total))
    _log_skipped(images.skipped, context.log)
    return images


def _log_skipped(skipped: tuple[str, ...], log: Log) -> None:
    if skipped:
        shown = "; ".join(skipped[:3]) + ("; ..." if len(skipped) > 3 else "")
        log(f"{len(skipped):,} unreadable image{'s' * (len(skipped) != 1)} skipped: {shown}")


def autoencoder_folder(recipe: Recipe, context: RunContext) -> Path:
    """Folder of the recipe's KL autoencoder."""
    return Path(recipe.autoencoder.path) if recipe.autoencoder.path else context.sibling("autoencoder")


def train_autoencoder(recipe: AutoencoderRecipe, context: RunContext) -> None:
    """Train a KL autoencoder into ``context.out``; a finished one stays as it is.

    Raises UserError for a recipe of another kind of autoencoder, a folder that holds another run, or a full disk.
    """
    recipe.check()
    recipe = absolute(recipe)
    context.processes.broadcast_from_main(lambda: refuse_other(recipe, context.out))
    with locked(context.out, "the autoencoder", context.processes):
        _train_autoencoder(recipe, context)


def train_own_autoencoder(recipe: Recipe, context: RunContext) -> None:
    """Train the autoencoder of a model's recipe next to the run, or in ``autoencoder.path``."""
    recipe.check()
    train_autoencoder(recipe.autoencoder_recipe(), replace(context, out=autoencoder_folder(recipe, context)))


def save_settings(recipe: Recipe | AutoencoderRecipe, dataset: Dataset, folder: Path) -> None:
    """Write the recipe and the description of its images into a run folder."""
    save_recipe(recipe, folder)
    save_data(dataset.info, folder)


def _train_autoencoder(recipe: AutoencoderRecipe, context: RunContext) -> None:
    dataset = open_images(recipe, context)
    context.processes.broadcast_from_main(lambda: refuse_other_data(dataset.info, context.out))
    autoencoder = encoders.autoencoder_kind(recipe.autoencoder.kind).build(
        recipe.autoencoder, dataset.shape[0], recipe.seed
    )
    latent = autoencoder.latent_shape(dataset.shape[1:])
    from_to = f"{'x'.join(map(str, dataset.shape))} to {'x'.join(map(str, latent))}"
    parameters = f"{sum(parameter.numel() for parameter in autoencoder.parameters()):,}"
    context.log(
        f"autoencoder to train: {from_to}, {parameters} parameters, {recipe.train.steps:,} steps of {recipe.train.batch} images"
    )
    images = load_images(dataset, context)
    held_out, what = held_out_images(recipe, images, 1000, context.processes.broadcast_from_main)
    task, held_out_task = (
        AutoencoderTask(autoencoder, data, recipe.autoencoder.kl_weight) for data in (images, held_out)
    )
    recipe, first_picture = fit_to_machine(recipe, task, context.out, context.device, context.processes, context.log)
    context.processes.broadcast_from_main(lambda: save_settings(recipe, dataset, context.out))
    callbacks = [HeldOutLoss(held_out_task), Reconstructions(held_out), AutoencoderFile(images)]
    facts = {"data": dataset.describe(), "image to latent": from_to, "parameters": parameters}
    facts |= {"PSNR and held-out loss are of": what}
    what, heading = "autoencoder", f"Autoencoder of {recipe.name}"
    train_and_report(
        recipe, context, task, callbacks, facts, command=what, what=what, title=what, heading=heading,
        first_picture=first_picture,
    )  # fmt: skip


def train_and_report(
    recipe: Recipe | AutoencoderRecipe,
    context: RunContext,
    task: Task,
    callbacks: Sequence[Callback],
    facts: dict[str, str],
    *,
    command: str,
    what: str,
    title: str,
    heading: str,
    first_picture: float,
    begin: Callable[[], None] | None = None,
) -> None:
    """Train ``what`` in the run folder, and write the report of its facts; ``title`` is the progress bar's.

    The first preview is drawn after ``first_picture`` seconds of training. ``begin`` is called before the first step of all.
    """
    train(
        task, recipe.train, seed=recipe.seed, flip=recipe.data.flip, folder=context.out, device=context.device,
        log=context.log, title=title, callbacks=callbacks, processes=context.processes, profile=context.profile,
        first_picture=first_picture,
        begin=begin,
    )  # fmt: skip
    command = f"ditlab {command} {context.out}"
    report = context.processes.broadcast_from_main(
        lambda: write_report(context.out, heading, command, facts, context.device)
    )
    context.log(f"{what}: {context.out}, report: {report}")


def pixel_autoencoder(images: Images) -> Autoencoder:
    """The identity autoencoder, normalised by the statistics of these images."""
    statistics = encoders.ChannelStatistics(images.shape[0])
    for start in range(0, len(images), 4096):
        statistics.add(encoders.uint8_to_float(images.pixels[start : start + 4096]))
    autoencoder = Autoencoder(images.shape[0], images.shape[0], 1)
    autoencoder.set_statistics(*(value.float() for value in statistics.result()))
    return autoencoder


def initial_autoencoder(recipe: Recipe, context: RunContext, channels: int) -> Autoencoder | None:
    """The autoencoder of the model that the recipe fine-tunes, stored next to the run so that resuming needs no more.

    None where the recipe has another one, or its own: with a path, or for images of other channels.
    """
    if not recipe.init or recipe.autoencoder.path:
        return None
    folder = context.sibling("autoencoder")
    context.processes.broadcast_from_main(lambda: copy_autoencoder(recipe, folder, context.out, channels, context.log))
    return record.load(folder) if (folder / record.RECORD).exists() and not (folder / "recipe.json").exists() else None


def prepare_autoencoder(recipe: Recipe, context: RunContext, channels: int) -> Autoencoder:
    """The recipe's learned autoencoder for images of so many channels: pretrained, trained earlier, or trained now."""
    kind, folder = encoders.autoencoder_kind(recipe.autoencoder.kind), autoencoder_folder(recipe, context)
    if (given := initial_autoencoder(recipe, context, channels)) is not None:
        return given
    own = not recipe.autoencoder.path  # with a path the autoencoder may come from any recipe
    if kind.trained:
        training = recipe.autoencoder_recipe()
        if context.processes.broadcast_from_main(lambda: _to_train(training, folder, own)):
            train_own_autoencoder(recipe, context)
    autoencoder = record.load(folder) if kind.trained else kind.build(recipe.autoencoder, channels, recipe.seed)
    if autoencoder.channels != channels:
        takes = f"the autoencoder takes {autoencoder.channels} channels, the images have {channels}"
        raise UserError(f"{takes}; set --data.channels {autoencoder.channels}")
    return autoencoder


def _to_train(recipe: AutoencoderRecipe, folder: Path, own: bool) -> bool:
    if own and (folder / "recipe.json").exists():
        refuse_other(recipe, folder)
    return not (folder / record.RECORD).exists() or (own and not _finished(recipe.train, folder))


def _finished(config: TrainConfig, folder: Path) -> bool:
    """Whether an autoencoder's last checkpoint is the end of its training, and its report, written after it, exists."""
    last = [int(done.name) for done in existing(folder / "checkpoints")][-1:]
    return last == [config.steps * config.batch] and (folder / "report.md").exists()


def cache_folder(recipe: Recipe, context: RunContext) -> Path:
    """Folder of the recipe's latents; for latents at a URL, of their local copy."""
    local = recipe.latents and not files.is_url(recipe.latents)
    return Path(recipe.latents) if local else context.sibling("latents")


def encode_dataset(recipe: Recipe, context: RunContext, dataset: Dataset, autoencoder: Autoencoder) -> LatentCache:
    """Encode the images that are missing in the recipe's cache, and open it.

    Raises UserError if the folder holds a cache of other images or another autoencoder, no image can be read, the disk is
    full, or the URL cannot be reached.
    """
    folder, flip = cache_folder(recipe, context), recipe.data.flip
    with locked(folder, "the latents", context.processes), progress_bar(shown=context.processes.is_main) as bar:
        tasks: dict[str, TaskID] = {}

        def show(what: str, done: int, total: int) -> None:
            if what not in tasks:
                tasks[what] = bar.add_task(what, rate="")
            bar.update(tasks[what], completed=done, total=total)

        if files.is_url(recipe.latents):
            skipped = encoders.encode_remote(
                recipe.latents, dataset, autoencoder, folder, flip=flip, device=context.device, progress=show,
                processes=context.processes,
            )  # fmt: skip
        else:
            skipped = encoders.encode(
                dataset, autoencoder, folder, flip=flip, device=context.device, progress=partial(show, "encoding"),
                processes=context.processes,
            )  # fmt: skip
        context.processes.broadcast_from_main(lambda: _update_index(folder / INDEX, dataset))
        context.processes.broadcast_from_main(lambda: encode_held_out(recipe, folder, autoencoder, context.device))
    _log_skipped(skipped, context.log)
    cache = LatentCache(folder, encoders.cache_key(dataset, autoencoder, flip))
    at = f", a copy of {recipe.latents}" if files.is_url(recipe.latents) else ""
    context.log(f"latents: {len(cache):,} of {'x'.join(map(str, cache.shape))} in {folder}{at}")
    return cache


def _update_index(path: Path, dataset: Dataset) -> None:
    if dataset.listed and read_index(path, dataset.config) != dataset.info:
        write_index(path, dataset)
