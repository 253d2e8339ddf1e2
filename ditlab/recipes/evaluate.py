"""``ditlab evaluate``: images of a model, a folder or an archive against real ones."""

from __future__ import annotations

import datetime
from dataclasses import dataclass, replace
from pathlib import Path

import torch

import ditlab
from ditlab.data import Dataset, open_data
from ditlab.data.config import SPLITS
from ditlab.errors import UserError, nearest
from ditlab.evaluate import (
    LEAST,
    Evaluation,
    Evaluator,
    FeatureNetwork,
    Number,
    append_result,
    extract_features,
    feature_network,
    read_results,
    write_neighbours,
)
from ditlab.recipes.find import find_recipe
from ditlab.recipes.prepare import Log
from ditlab.recipes.samples import Samples, evaluate_flags, open_images
from ditlab.recipes.trained_data import refuse_other_data
from ditlab.runtime.console import progress_bar
from ditlab.runtime.distributed import Processes


@dataclass(frozen=True)
class EvaluationConfig:
    """How samples are measured."""

    network: str = "efficientnet-lite0"  # name of the feature network
    weights: str = ""  # file of its weights; empty for the usual ones
    reference: str = (
        "train"  # split of the data; or a folder or an archive of images, or an .npz of images or statistics
    )
    recipe: str = ""  # recipe or run whose data that is, for samples that do not name it
    size: tuple[int, ...] = ()  # to which real images are cropped and resized, one number or (H, W); empty keeps them
    data_path: str = ""  # where the images of the splits are now; empty where they were


def build_evaluator(
    samples: Samples, config: EvaluationConfig, device: torch.device, processes: Processes, log: Log
) -> tuple[FeatureNetwork, Evaluator | None]:
    """The feature network, and in the main process the evaluator.

    UserError: no real images are known, they are of another size, or weights are missing.
    """

    def load_weights() -> None:
        feature_network(config.network, samples.size, config.weights)

    if processes.size > 1:
        processes.broadcast_from_main(load_weights)  # the main process downloads them, and reports errors for all
    network = feature_network(config.network, samples.size, config.weights, device)
    dataset = None if config.reference.endswith(".npz") else _real_images(samples, config)
    described = config.reference if dataset is None else dataset.describe()
    split = f", {config.reference}" if config.reference in SPLITS else ""
    log(f"real images: {described}{split}; features: {network.describe()}")
    for note in () if dataset is None else dataset.source.notes:  # what was skipped, and splits that are not used
        log(note)
    with progress_bar(shown=processes.is_main) as bar, evaluate_flags():
        task = bar.add_task("real images", total=None if dataset is None else len(dataset), rate="")

        def progress(done: int) -> None:
            bar.update(task, completed=done)

        if dataset is None:
            path, resize = Path(config.reference), bool(config.size)
            return network, Evaluator.from_file(path, network, samples.size, processes, progress, resize)
        return network, Evaluator.of(dataset, network, processes, progress, trained=config.reference in SPLITS)


def _real_images(samples: Samples, config: EvaluationConfig) -> Dataset:
    """The data set to measure against; a UserError if it is unknown or of another image size."""
    if config.reference in SPLITS:
        dataset = _split(samples, config)
    elif config.data_path:
        raise UserError(
            f"--data.path {config.data_path} is of --reference train or test, not of --reference {config.reference}"
        )
    elif (path := Path(config.reference)).exists():
        dataset = open_images(path, config.size)
    else:
        raise UserError(
            f"no --reference {config.reference!r}: {nearest(config.reference, SPLITS)}; or give a folder or an archive of "
            "real images, or an .npz of images or statistics"
        )
    if dataset.shape[1:] != samples.size:
        real, generated = ("x".join(map(str, size)) for size in (dataset.shape[1:], samples.size))
        how = f"give --size {generated.replace('x', ' ')} to crop and resize all images to one size"
        raise UserError(f"the real images are {real}, but the samples {generated}; {how}")
    return dataset


def _split(samples: Samples, config: EvaluationConfig) -> Dataset:
    """A split of the data set of a recipe, or of the run that the samples are of."""
    data, run = samples.data, samples.folder.parent
    if config.recipe:
        data, run = find_recipe(config.recipe)[0].data, Path(config.recipe)
    if data is None:
        raise UserError(
            "the real images are unknown: give --reference with a folder or an archive of images or an .npz (./NAME for a "
            "folder named as a split), or --recipe with a recipe or a run"
        )
    data = replace(data, path=config.data_path or data.path)
    if data.source in ("folder", "archive", "parquet") and not data.path:
        raise UserError(f"recipe {config.recipe!r} names no images: give their folder or archive with --reference")
    data = replace(data, split=config.reference, size=config.size or data.size)
    if samples.training is not None and samples.training.config == data:
        return samples.training
    if not config.data_path and Path(data.path).is_absolute() and not Path(data.path).exists():
        raise UserError(
            f"the images of {run} are no longer at {data.path}; give their new place with --data.path, or other real images "
            "with --reference"
        )
    with evaluate_flags():
        dataset = open_data(data)
    if config.data_path and config.reference == "train" and not config.size:
        remedy = "give the --data.path of those, or measure against these with --reference"
        refuse_other_data(dataset.info, run, remedy=remedy)
    return dataset


def evaluate_samples(
    samples: Samples, config: EvaluationConfig, out: Path, device: torch.device, processes: Processes, log: Log
) -> Evaluation | None:
    """Measure samples, and draw the training images nearest to them.

    Adds to ``results.jsonl``, ``report.md`` and pictures in the folder ``out``. Returns the evaluation in the main process,
    None in the others. UserError: too few samples or real images for any metric, or a setting that cannot be met.
    """
    processes.broadcast_from_main(lambda: read_results(out))  # fails before hours of sampling, as the next check does
    if samples.count < LEAST:
        raise UserError(f"{samples.count} samples are too few to be measured; at least {LEAST} needed")
    network, evaluator = build_evaluator(samples, config, device, processes, log)

    def real_floor() -> dict[str, Number]:
        assert evaluator is not None
        if reason := evaluator.no_frechet(samples.count):
            log(f"{network.distance} is skipped, the other metrics are measured: {reason}")
        return evaluator.floor()

    floor = processes.broadcast_from_main(real_floor)
    if "labels" in samples.settings:
        log(f"labels: {samples.settings['labels']}")
    with progress_bar(shown=processes.is_main) as bar:
        task = bar.add_task("samples", total=samples.count, rate="")

        def progress(done: float, step: int = 0) -> None:
            line = f"step {step} of {samples.steps} of a batch" if step else ""
            bar.update(task, completed=min(done, samples.count), rate=line)

        generated = extract_features(network, samples.batches(progress), processes, progress)
    if evaluator is None or generated is None:
        return None
    numbers, settings = evaluator.measure(generated), samples.settings | _settings(evaluator, config, samples)
    neighbours = evaluator.neighbours(generated)
    if neighbours is not None:
        numbers, floor = numbers | neighbours.numbers, floor | neighbours.expected
        settings["nearest"] = f"nearest-{len(read_results(out)) + 1}.png"
        write_neighbours(neighbours, out / settings["nearest"])
    evaluation = Evaluation(numbers, floor, settings)
    append_result(out, evaluation)
    return evaluation


def _settings(evaluator: Evaluator, config: EvaluationConfig, samples: Samples) -> dict[str, str]:
    """Everything the numbers depend on, besides the samples."""
    network, reference, real = evaluator.network, evaluator.reference, evaluator.real
    settings = {"feature network": network.describe()}
    if config.size:
        settings["size"] = f"{'x'.join(map(str, samples.size))}: images of other sizes were cropped and resized"
    if config.reference.endswith(".npz"):
        parts = [config.reference, reference.images]
        if real is not None:
            parts.append(f"{real.statistics.count:,} images for precision and recall")
        settings["real images"] = ": ".join(part for part in parts if part)
    elif real is not None:
        settings["real images"] = real.describe() + (f", {config.reference}" if config.reference in SPLITS else "")
    if real is not None:
        settings["real against real"] = " against ".join(f"{half.count:,} images" for half in real.halves)
    if reason := evaluator.no_frechet(samples.count):
        settings[network.distance] = f"not measured: {reason}"
    if evaluator.train:
        held_out = evaluator.held_out
        settings["held out"] = (
            "none: memorisation is not measured" if held_out is None else f"{held_out.describe()}, test"
        )
    settings["ditlab, torch, date"] = f"{ditlab.__version__}, {torch.__version__}, {datetime.date.today()}"
    return settings
