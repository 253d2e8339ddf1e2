"""Accuracy of models of rendered scenes over the images they were trained on, and the pictures of the tour.

    python benchmarks/scenes.py MODEL [MODEL ...] [--count 500] [--json FILE] [--pictures docs/pictures]

The models are copies of a run's model.safetensors and model.json at several checkpoints, in folders of their own, the last one
the final model. Each is sampled with DPM-Solver, 15 steps and guidance 3, from ``--count`` prompts of each of GenEval's tasks,
seen and held out; models before the last from a fifth of them.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np

import ditlab
from ditlab.data.scene_captions import prompts
from ditlab.evaluate.scenes import SceneScores, ScenesJudge, measure, tasks
from ditlab.pipelines import Pipeline, grid, write_png
from ditlab.playground.inspection import Inspection
from ditlab.playground.words import word_attention, words_figure
from ditlab.study.figure import Series, draw

SHOWN = (
    "a red square left of a blue circle", "two green rings", "a small cyan cross", "an orange triangle in the top left",
    "a purple circle above a black cross", "three yellow circles", "a red ring", "a blue square and a green triangle",
)  # fmt: skip
HARD = ("counting", "position", "colour attribution")  # tasks of the picture of failures, a row each
COLUMNS, TRIED = 8, 100
HOW: dict[str, Any] = {"sampler": "dpm-solver", "steps": 15, "guidance": 3.0}


def scores_of(model: Pipeline, count: int) -> SceneScores:
    """The scores of a model."""
    return measure(lambda texts: model.sample(prompts=texts, batch=64, seed=0, **HOW), count)


def pictures(model: Pipeline, out: Path) -> None:
    """Samples of prompts, failures, and attention to words."""
    images = model.sample(prompts=list(SHOWN), count=3 * COLUMNS, seed=0, **HOW)
    write_png(grid(images, COLUMNS, captions=SHOWN), out / "scenes.png", {"seed": 0, **HOW})
    failed, texts = [], []
    for task in HARD:
        drawn = prompts(task, TRIED, 1, held_out=False)
        made = model.sample(prompts=[prompt.text for prompt in drawn], seed=1, **HOW)
        rows = np.flatnonzero(~ScenesJudge.score(made, drawn))[:COLUMNS]
        blank = np.full((COLUMNS - len(rows), *made.shape[1:]), 255, np.uint8)
        failed += [made[rows], blank]
        texts += [drawn[row].text for row in rows] + [""] * len(blank)
    write_png(grid(np.concatenate(failed), COLUMNS, captions=texts), out / "scenes-failures.png", {"seed": 1, **HOW})
    image = model.sample(prompts=SHOWN[0], count=1, seed=0, **HOW)
    inspection = Inspection(model, model.condition([SHOWN[0]], 1), 0, model.encode(image), image[0], SHOWN[0])
    write_png(words_figure(inspection, word_attention(inspection, 0.5)), out / "scenes-words.png", {"t": 0.5})


def curve(rows: list[dict[str, Any]], out: Path) -> None:
    """Accuracy of each task over the images seen."""
    series = [
        Series(task, [(row["images"], 100 * row["shares"][task], "") for row in rows])
        for task in (*tasks(), "mean held out")
    ]
    draw(out / "scenes-curve.png", "accuracy over training", series, "images seen", "images that show their prompt, %")


def main() -> None:
    """Measure the models; with --pictures draw."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("models", type=Path, nargs="+")
    parser.add_argument("--count", type=int, default=500, help="prompts of each task")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--pictures", type=Path)
    given = parser.parse_args()
    rows: list[dict[str, Any]] = []
    for path in given.models:
        model = ditlab.load(path)
        found = scores_of(model, given.count if path == given.models[-1] else max(given.count // 5, 1))
        shares = {task: found.get(task).share for task in tasks()} | {"mean held out": found.mean(held_out=True)}
        rows.append({"images": model.facts["images"], "shares": shares, **json.loads(found.to_json())})
        print(f"{model.facts['images']:,} images", *found.table(), sep="\n", flush=True)
    if given.json:
        given.json.write_text(json.dumps(rows, indent=1) + "\n")
    if given.pictures:
        pictures(ditlab.load(given.models[-1]), given.pictures)
        if len(rows) > 1:
            curve(rows, given.pictures)


if __name__ == "__main__":
    main()
