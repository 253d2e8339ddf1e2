"""How the runs of a study on captioned scenes are measured: by whether samples show what the prompt says."""

from __future__ import annotations

import time
from dataclasses import replace
from itertools import combinations
from pathlib import Path

import numpy as np

from ditlab.data import open_data
from ditlab.data.scene_captions import Prompt, prompts
from ditlab.evaluate.scenes import SceneScores, measure, render, tasks
from ditlab.pipelines import Pipeline, grid, write_png
from ditlab.recipes.language import CaptionLoss, caption_loss
from ditlab.study.distances import BATCH, Measurement
from ditlab.study.plan import Plan
from ditlab.study.study_run import Result, StudyRun, count_calls, result_of

PICTURE = 3  # samples of each task in the picture of a run
PROMPTS, REPEATS = 24, 4  # whose images are compared for variety, and how many each
HELD_OUT = 1024  # images of the test split for the loss


def measurement(plan: Plan) -> Measurement:
    """What measures the runs of a plan."""
    test = open_data(replace(plan.recipe.data, split="test", limit=HELD_OUT))

    def measured(run: StudyRun, pipeline: Pipeline, run_folder: Path, out: Path) -> Result:
        made: list[np.ndarray] = []

        def generate(texts: list[str]) -> np.ndarray:
            made.append(_sample(pipeline, run, texts))
            return made[-1]

        start = time.perf_counter()
        with count_calls(pipeline) as calls:
            scores = measure(generate, run.count)  # of the same prompts in all runs
        seconds, images = time.perf_counter() - start, sum(map(len, made))
        picture = np.concatenate([each[:PICTURE] for each in made[: len(tasks())]])
        write_png(grid(picture, len(picture)), out / f"{run.name}.png")
        numbers = _numbers(scores, caption_loss(pipeline, test), _variety(pipeline, run))
        sampling = {"seconds": seconds, "network_calls": sum(calls) / images}
        return result_of(run, pipeline, run_folder, "accuracy", numbers, {}, sampling)

    return measured


def _numbers(scores: SceneScores, loss: CaptionLoss, variety: float) -> dict[str, dict[str, float | None]]:
    """Accuracies in percent, of all tasks and each of them, seen and held out; the losses; the variety."""
    values = {"accuracy": 100 * scores.mean(), "held out": 100 * scores.mean(held_out=True)}
    values |= {task: 100 * scores.get(task).share for task in tasks()}
    values |= {f"unseen {task}": 100 * scores.get(task, held_out=True).share for task in tasks()}
    values |= {"held-out loss": loss.own, "other caption": loss.other - loss.own, "variety": variety}
    return {name: {"value": value, "spread": None} for name, value in values.items()}


def _sample(pipeline: Pipeline, run: StudyRun, texts: list[str]) -> np.ndarray:
    return np.concatenate(list(pipeline.batches(texts, run.recipe.seed, len(texts), run.sample, BATCH)))


def _variety(pipeline: Pipeline, run: StudyRun) -> float:
    """How much images of one prompt differ, as a share of how much real scenes of it do."""
    drawn = [prompt for task in tasks() for prompt in prompts(task, PROMPTS // len(tasks()), 0, False)]
    repeated: list[Prompt] = [prompt for prompt in drawn for _ in range(REPEATS)]
    made = _sample(pipeline, run, [prompt.text for prompt in repeated])
    real = render(repeated, (made.shape[1], made.shape[2]))
    return _differences(made) / _differences(real)


def _differences(images: np.ndarray) -> float:
    """The mean squared difference of two of the ``REPEATS`` images of a prompt, over pairs and prompts."""
    grouped = images.reshape(-1, REPEATS, images[0].size).astype(np.float64)
    return float(np.mean([((grouped[:, a] - grouped[:, b]) ** 2).mean() for a, b in combinations(range(REPEATS), 2)]))
