"""The runs of a study: what each one trains and samples, and its measured result."""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

from ditlab.data import DataConfig, open_data
from ditlab.encoders import TextEncoder, TextEncoderConfig, autoencoder_kind
from ditlab.errors import UserError
from ditlab.models import cost
from ditlab.pipelines import Pipeline, SampleConfig
from ditlab.recipes import Recipe, network_spec
from ditlab.recipes.captions import text_encoder
from ditlab.runtime import files
from ditlab.train.meter import read_metrics

RESULTS, BEFORE = "results", "cells"  # the folder of the results; its name before version 0.2


@dataclass(frozen=True)
class StudyRun:
    """One setting of a study: a trained network, sampled and measured."""

    name: str  # of the result, unique in the study
    training: str  # name of the run folder; runs with equal recipes share one training
    recipe: Recipe  # of the training
    sample: SampleConfig  # sampler, steps and guidance
    count: int  # number of samples to measure
    values: dict[str, Any]  # the varied settings, by name

    def key(self) -> dict[str, Any]:
        """Everything the result depends on, as JSON types."""
        sample = json.loads(json.dumps(asdict(self.sample)))
        return {"recipe": json.loads(self.recipe.to_json()), "sample": sample, "count": self.count}


@dataclass(frozen=True)
class Result:
    """The measurements of one run."""

    name: str  # of the run, as values and key
    values: dict[str, Any]
    key: dict[str, Any]
    metric: str  # name of the distance by which the study compares its runs
    numbers: dict[str, dict[str, float | None]]  # each measured metric, by name: value and spread
    floor: dict[str, dict[str, float | None]]  # the same metrics of real images against real images
    network: dict[str, float]  # gmacs, parameters and tokens
    training: dict[str, float]  # images, gmacs in total, seconds, images_per_second, loss
    sampling: dict[str, float]  # seconds, network_calls per image, gmacs per image
    more: dict[str, float] = field(default_factory=dict)  # metrics of some studies only, such as the autoencoder's psnr

    @property
    def distance(self) -> float:
        """The value of the study's metric."""
        return self.number(self.metric)

    def number(self, prefix: str) -> float:
        """The value of the first metric whose name starts with ``prefix``."""
        value = next(number["value"] for name, number in self.numbers.items() if name.startswith(prefix))
        assert value is not None
        return value

    def save(self, folder: Path) -> None:
        """Write ``NAME.json``; raises UserError if the folder is not writable."""
        files.write_file(folder / f"{self.name}.json", json.dumps(asdict(self), indent=2) + "\n")


@contextmanager
def count_calls(pipeline: Pipeline) -> Iterator[list[int]]:
    """A list to which every call of the network adds its rows."""
    calls: list[int] = []
    hook = pipeline.network.register_forward_hook(lambda *arguments: calls.append(len(arguments[-1])))  # the output
    try:
        yield calls
    finally:
        hook.remove()


def result_of(
    run: StudyRun, pipeline: Pipeline, run_folder: Path, metric: str, numbers: dict[str, dict[str, float | None]],
    floor: dict[str, dict[str, float | None]], sampling: dict[str, float], more: dict[str, float] | None = None,
) -> Result:  # fmt: skip
    """The result of a run whose model and folder these are; ``sampling`` lacks the GMACs."""
    costs = cost(pipeline.network.config, pipeline.network.spec)
    rows = [row for row in read_metrics(run_folder) if row.get("loss") is not None]
    images, speed = rows[-1]["images"], statistics.median(row["images_per_second"] for row in rows)
    training = {"images": images, "gmacs": 3 * costs.gmacs * images, "images_per_second": speed}
    return Result(
        run.name,
        run.values,
        run.key(),
        metric=metric,
        numbers=numbers,
        floor=floor,
        network={"gmacs": costs.gmacs, "parameters": costs.total_parameters, "tokens": costs.tokens},
        training={**training, "seconds": images / speed, "loss": rows[-1]["loss"]},
        sampling={**sampling, "gmacs": sampling["network_calls"] * costs.gmacs},
        more=more or {},
    )


def gmacs(recipe: Recipe) -> float:
    """Multiply-accumulates of a forward pass of the recipe's network, for its images and captions, in billions."""
    latent_shape = autoencoder_kind(recipe.autoencoder.kind).latent_shape
    assert latent_shape is not None  # a study trains its autoencoders
    shape, classes, text = _inputs(recipe.data, recipe.text)
    spec = network_spec(recipe, latent_shape(recipe.autoencoder, shape), classes, text)
    return cost(recipe.model, spec).gmacs


@cache
def _inputs(data: DataConfig, text: TextEncoderConfig) -> tuple[tuple[int, ...], int, TextEncoder | None]:
    """Shape of the images, number of classes, and the encoder of captions: the same for most runs of a study."""
    dataset = open_data(data)
    return dataset.shape, len(dataset.names), text_encoder(text, dataset)


def finished(run: StudyRun, folder: Path) -> Result | None:
    """The stored result of a run, None if not measured yet; raises UserError if it is damaged or of other settings."""
    path = folder / f"{run.name}.json"
    if not path.exists():
        return None
    try:
        result = Result(**json.loads(path.read_text()))
        recipe = Recipe.from_json(json.dumps(result.key["recipe"]), str(path))  # also reads fields by their older names
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise UserError(f"{path} is damaged ({error}); delete it to measure the run again") from error
    key = {**result.key, "recipe": json.loads(recipe.to_json())}
    if key != run.key():
        raise UserError(
            f"{path} was measured with other settings ({_difference(key, run.key())}); choose another --out"
        )
    return replace(result, key=key, values=run.values)


def load_results(runs: Sequence[StudyRun], out: Path) -> list[Result | None]:
    """``finished`` for each run in a study's folder, of this version or an earlier one."""
    if (out / BEFORE).is_dir() and not (out / RESULTS).exists():
        (out / BEFORE).rename(out / RESULTS)
    return [finished(run, out / RESULTS) for run in runs]


def _difference(stored: Any, planned: Any, name: str = "") -> str:
    """The first setting that differs."""
    if isinstance(stored, dict) and isinstance(planned, dict):
        for key in (*planned, *(key for key in stored if key not in planned)):
            if stored.get(key) != planned.get(key):
                return _difference(stored.get(key), planned.get(key), f"{name}.{key}" if name else key)
    return f"{name} is {stored} in the file and {planned} in this study"
