"""``ditlab evaluate``: samples against the real images they should be like."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from ditlab.cli.flags import parse
from ditlab.cli.sampling import SamplingOptions


@dataclass(frozen=True, kw_only=True)
class EvaluateOptions(SamplingOptions):
    """Measure samples: Frechet distance, kernel distance, precision, recall, and whether training images were memorised."""

    samples: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="SAMPLES")]
    """A run folder, a model.safetensors, a model that ships, diffusers' pipeline, a folder of images, or an .npz with arr_0."""
    count: int = 0
    """Images to make and measure, or to draw from a folder or an archive; 0 makes 10,000, and takes all that are there."""
    network: str = "efficientnet-lite0"
    """Feature network: efficientnet-lite0, whose weights come with ditlab[eval], or inception, which FID is defined by."""
    weights: str = ""
    """File of Inception weights in place of the reference ones, which are downloaded once."""
    reference: str = "train"
    """Real images: the train or test part of the data, or an .npz of statistics (mu, sigma)."""
    recipe: str = ""
    """Whose data that is, where the samples do not say: a recipe or a run."""
    out: str = ""
    """Folder of results.jsonl, report.md and pictures, to which a measurement is added; empty: beside the samples."""


def evaluate(arguments: list[str]) -> None:
    """Measure samples against real images."""
    options = parse(EvaluateOptions, arguments, "evaluate")
    from rich.console import Console

    from ditlab.pipelines import Pipeline, SampleConfig
    from ditlab.recipes.evaluate import EvaluationConfig, evaluate_samples
    from ditlab.recipes.samples import open_samples
    from ditlab.runtime.console import log, main_process_log
    from ditlab.runtime.device import default_device
    from ditlab.runtime.distributed import join

    processes = join()

    def choose(model: Pipeline) -> SampleConfig:
        if options.compile:
            model.compile()
        return options.config(model)

    samples = open_samples(options.samples, options.count, options.seed, options.batch, choose, processes)
    out = Path(options.out) if options.out else samples.folder
    how = EvaluationConfig(options.network, options.weights, options.reference, options.recipe)
    evaluation = evaluate_samples(samples, how, out, default_device(processes), processes, main_process_log(processes))
    if evaluation is not None:
        Console().print(evaluation.table())
        log(f"report: {out / 'report.md'}")
