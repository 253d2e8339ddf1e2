"""Samples to be measured: of a model, made as they are asked for; of a folder; of an archive."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from ditlab.data import DataConfig, open_data
from ditlab.diffusion import samplers
from ditlab.errors import UserError
from ditlab.evaluate import read_archive
from ditlab.interop.diffusers_pipeline import INDEX
from ditlab.interop.find import find_model
from ditlab.pipelines import Pipeline, SampleConfig, generate
from ditlab.pipelines.shipped import SHIPPED, locate
from ditlab.recipes.find import NAMES, find_recipe
from ditlab.runtime.device import default_device
from ditlab.runtime.distributed import Processes

COUNT = 10_000  # images made unless told otherwise
BATCH = 256  # images of a folder or an archive at a time
WHERE = (
    "a run folder, a model.safetensors, a shipped model, diffusers' pipeline, a folder of images, or an .npz with arr_0"
)
BEFORE = {"model": "not known: these images were made before"}


@dataclass(frozen=True)
class Samples:
    """Images to be measured.

    Attributes:
        batches: gives this process's share, uint8 (N, H, W, C) each.
        count: of all processes.
        size: height and width.
        how: what they depend on, in words.
        folder: where their evaluation belongs.
        data: the images they should be like, where that is known.
    """

    batches: Callable[[], Iterator[np.ndarray]]
    count: int
    size: tuple[int, int]
    how: dict[str, str]
    folder: Path
    data: DataConfig | None


def open_samples(
    source: str, count: int, seed: int, batch: int, choose: Callable[[Pipeline], SampleConfig], processes: Processes
) -> Samples:
    """What is to be measured.

    Args:
        source: a run folder, a model.safetensors, a shipped model, diffusers' pipeline, a folder of images, or an .npz.
        count: images to make, or to draw from a folder or an archive; 0 makes COUNT, and takes all that are there.
        seed: of the images to make.
        batch: images made at a time.
        choose: how a model is sampled.
        processes: that share the work.

    Raises:
        UserError: nothing of that kind is there.
    """
    path = Path(source)
    if count < 0 or batch < 1 or seed < 0:
        raise UserError(f"count {count} and seed {seed} must be 0 or more, batch {batch} 1 or more")
    if path.suffix == ".npz":
        return _archive(path, count, processes)
    if path.is_dir() and not any((path / name).is_file() for name in ("model.json", INDEX)):
        if (path / "recipe.json").exists():
            raise UserError(f"{path} holds a run without a finished model; let `ditlab train {path}` end first")
        return _folder(path, count, processes)
    if path.suffix != ".safetensors" and not locate(source).is_dir():
        raise UserError(f"no samples at {path}; expected {WHERE} ({', '.join(SHIPPED)})")
    return _model(source, count or COUNT, seed, batch, choose, processes)


def _shares(total: int, count: int, processes: Processes) -> Iterator[np.ndarray]:
    """Indices of this process's batches of ``count`` of ``total`` images, which are drawn once and always the same.

    Files often lie class by class; the first ones are then as good as any.
    """
    drawn = np.random.default_rng(0).permutation(total)[:count]
    for start in range(processes.rank * BATCH, count, processes.size * BATCH):
        yield drawn[start : start + BATCH]


def _archive(path: Path, count: int, processes: Processes) -> Samples:
    images = read_archive(path)
    total = min(count or len(images), len(images))

    def batches() -> Iterator[np.ndarray]:
        return (images[rows] for rows in _shares(len(images), total, processes))

    how = {"samples": f"{total:,} images of {path.name}", **BEFORE}
    height, width = images.shape[1:3]
    return Samples(batches, total, (height, width), how, _beside(path), None)


def _folder(path: Path, count: int, processes: Processes) -> Samples:
    dataset = open_data(DataConfig(source="folder", path=str(path)))
    total = min(count or len(dataset), len(dataset))

    def batches() -> Iterator[np.ndarray]:
        for rows in _shares(len(dataset), total, processes):
            try:
                pixels, found = dataset.read(rows)
            except UserError as error:
                shapes = str(error).partition(";")[0]
                raise UserError(f"{path} holds images of mixed sizes ({shapes}); give images of one size") from error
            if len(found) < len(rows):
                broken = next(iter(dataset.skipped.values()))
                raise UserError(f"{path} has images that cannot be read ({broken}); mend them, or take them out")
            yield pixels.transpose(0, 2, 3, 1)

    how = {"samples": f"{total:,} images of {path.resolve().name}/", **BEFORE}
    return Samples(batches, total, dataset.shape[1:], how, _beside(path), None)


def _beside(path: Path) -> Path:
    return path.resolve().with_name(f"{path.resolve().stem}-evaluation")


def _model(
    source: str, count: int, seed: int, batch: int, choose: Callable[[Pipeline], SampleConfig], processes: Processes
) -> Samples:
    model = find_model(source).to(default_device(processes))
    config = choose(model)
    model.check(config)
    samplers.check(config.sampler, model.denoiser.schedule, config.steps)
    guidance = config.guidance
    guided = "off"
    if guidance.scale != 1:
        guided = f"{guidance.scale:g}, {f'the first {guidance.channels}' if guidance.channels else 'all'} channels"
        guided += "" if (guidance.low, guidance.high) == (0, 1) else f", t from {guidance.low:g} to {guidance.high:g}"
    sampler, precision = f"{config.sampler}, {config.steps} steps", "bf16" if config.bf16_on(model.device) else "fp32"
    how = {
        "samples": f"{count:,} of {source}, guidance {guided}, {sampler}, seed {seed}",
        "model": ", ".join([source, *(f"{name} {value}" for name, value in model.facts.items())]),
        "decoder": _decoder(model),
        "guidance": guided,
        "labels": "every class in turn" if model.classes else "none: unconditional",
        "sampler": f"{sampler}, {precision}",
        "seed": f"{seed}: image k of a seed is always the same",
    }
    made = partial(generate, model, None, seed, count, config, batch, processes)
    return Samples(made, count, model.pixels[1:], how, _run(source) / "evaluation", training_data(source, model))


def _run(source: str) -> Path:
    """The run folder a model lies in; of one that ships, one that no run has."""
    path = Path(source)
    if locate(source) != path:
        return Path("runs") / f"{source}-shipped"
    return path.parent if path.suffix == ".safetensors" else path


def training_data(source: str, model: Pipeline) -> DataConfig | None:
    """The images of the model's run's recipe, or of the recipe that it names; nothing where neither is known here."""
    folder = _run(source)
    if (folder / "recipe.json").exists():
        return find_recipe(str(folder / "recipe.json"))[0].data
    named = model.facts.get("recipe")
    return find_recipe(str(named))[0].data if named in NAMES else None


def _decoder(model: Pipeline) -> str:
    record = model.autoencoder.record()
    parts = [str(record[name]) for name in ("kind", "path", "subfolder") if record.get(name)]
    return f"{' '.join(parts)}, factor {model.autoencoder.factor}"
