"""``ditlab evaluate``: measure samples against real images."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

import tyro

from ditlab.cli.flags import parse
from ditlab.cli.sampling import SamplingOptions, choose_threads, help_defaults
from ditlab.errors import UserError


@dataclass(frozen=True)
class MovedData:
    """The flag --data.path, as of `ditlab train`."""

    path: str = ""
    """Where the images of the splits train and test are now, if they were moved; the same images as at the training."""


@dataclass(frozen=True, kw_only=True)
class EvaluateOptions(SamplingOptions):
    """Measure samples: Frechet distance, kernel distance, precision, recall, and memorised training images."""

    samples: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="SAMPLES")]
    """A run folder, a model.safetensors, a shipped model, a diffusers pipeline, a folder or an archive of images, or an .npz
    with arr_0."""
    count: int = 0
    """Images to generate, or to draw from a folder or archive; 0 generates 10,000, or takes all of the folder or archive."""
    label_order: Literal["proportional", "turn", "random"] = "proportional"
    """Classes of the images to generate. proportional: as often as in the training data; turn: equally often; random: each
    drawn with the seed, all equally likely, as DiT's and ADM's scripts do."""
    network: str = "efficientnet-lite0"
    """Feature network: efficientnet-lite0 (weights come with ditlab[eval]), inception (the one FID is defined with), or none,
    which measures only how well a model follows its prompts."""
    task_prompts: int = 100
    """Prompts of each of the six tasks, seen and held out, for a model of the data set scenes."""
    weights: str = ""
    """File of Inception weights; by default the reference weights are downloaded once."""
    reference: str = "train"
    """Real images: a folder or an archive of images, an .npz with images (arr_0), statistics (mu, sigma) or both, or a split
    of the data that the model was trained on: train or test."""
    recipe: str = ""
    """Recipe or run whose data the splits are of, for samples that are no run."""
    data: MovedData = field(default_factory=MovedData)
    """Images that a model was trained on."""
    size: tuple[int, ...] = ()
    """Crop and resize all images to this size in pixels, one number for a square or H W; empty: images are measured as they
    are, and must be of one size."""
    out: str = ""
    """Folder of results.jsonl, report.md and pictures; a measurement is appended. Empty: next to the samples."""


def evaluate(arguments: list[str]) -> None:
    """Measure samples against real images."""
    shown = help_defaults(arguments)
    default = EvaluateOptions(samples=arguments[0], **shown) if shown else None
    options = parse(EvaluateOptions, arguments, "evaluate", default)
    from rich.console import Console

    from ditlab.pipelines import Pipeline, SampleConfig
    from ditlab.recipes.evaluate import EvaluationConfig, evaluate_samples
    from ditlab.recipes.language import LANGUAGE, measure_language
    from ditlab.recipes.samples import open_samples
    from ditlab.runtime.console import log, main_process_log
    from ditlab.runtime.device import select_device
    from ditlab.runtime.distributed import join

    processes = join()
    device, main_log = select_device(options.device, processes), main_process_log(processes)

    def sampling(model: Pipeline) -> SampleConfig:
        config = options.config(model)
        model.prepare(config, options.compile)
        model.check(config)
        if not options.compile:
            choose_threads(model, config, options.batch, processes)
        return config

    samples = open_samples(
        options.samples,
        options.count,
        options.seed,
        options.label_order,
        options.batch,
        sampling,
        processes,
        options.size,
        device,
    )
    out = Path(options.out) if options.out else samples.folder
    model = samples.model
    if model is not None and model.clips and options.network != "none":
        raise UserError(
            f"{options.samples} makes clips, and the features are of images; give --network none to measure how prompts are "
            "followed"
        )
    if model is not None and model.text is not None and samples.config is not None:
        language = measure_language(
            model, samples.data, samples.config, options.task_prompts, seed=options.seed, batch=options.batch,
            settings=samples.settings, out=out, processes=processes, log=main_log,
        )  # fmt: skip
        main_log("\n".join([*language.lines(), f"language: {out / LANGUAGE}"]))
    elif options.network == "none":
        raise UserError(
            f"--network none measures how prompts are followed, and {options.samples} is no model of prompts"
        )
    if options.network == "none":
        return
    config = EvaluationConfig(
        options.network, options.weights, options.reference, options.recipe, options.size, options.data.path
    )
    evaluation = evaluate_samples(samples, config, out, device, processes, main_log)
    if evaluation is not None:
        Console().print(evaluation.table())
        log(f"report: {out / 'report.md'}")
