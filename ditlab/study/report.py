"""A study's results as a file for programs and a page for people."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import torch
from PIL import Image

import ditlab
from ditlab.pipelines import write_png
from ditlab.runtime import files
from ditlab.runtime.console import markdown_table
from ditlab.study.plan import STUDIES, Plan
from ditlab.study.study_run import Result


def write_report(plan: Plan, results: Sequence[Result], folder: Path) -> Path:
    """Write ``results.json``, the figures and ``report.md``.

    Raises:
        UserError: the disk is full or the folder cannot be written.
    """
    study, metric = STUDIES[plan.study], results[0].metric
    files.write_file(folder / "results.json", json.dumps([asdict(result) for result in results], indent=1) + "\n")
    form = plan.form
    train, sample = form.recipe.train, form.sample
    seconds = {result.key["recipe"]["name"]: result.training["seconds"] for result in results}
    lines = [f"# {study.title}: {plan.recipe.name}", "", study.question, "", f"`{command(plan)}`", ""]
    lines += study.report(results, folder)
    lines += ["## Samples", "", "The first of each cell, without choosing; one noise an image in all of them.", ""]
    _samples(results, folder)
    lines += ["![samples of each cell](samples.png)", "", "## How it was measured", ""]
    floor, diffusion = _value(results[0].floor, metric), form.recipe.diffusion
    lines += markdown_table(
        ["", ""],
        [
            (
                "cells",
                f"{len(results)}, of {len(seconds)} trainings that took {sum(seconds.values()) / 60:.0f} minutes together",
            ),
            ("training", f"{train.images:,} images, batch {train.batch}, rate {train.lr:g}, EMA {train.ema:g}"),
            ("diffusion", f"{diffusion.schedule}, {diffusion.target}, times {diffusion.times}"),
            (
                "samples",
                f"{form.count:,} a cell, every class in turn, {sample.sampler} {sample.steps} steps, no guidance",
            ),
            ("metric", f"{metric}, lower is better; real images, one half against the other: {floor}"),
            ("real images", f"{plan.recipe.data.source}, {plan.recipe.data.split}: those that were trained on"),
            ("ditlab, torch", f"{ditlab.__version__}, {torch.__version__}"),
        ],
    )
    lines += ["Where a table says otherwise, it is otherwise.", ""]
    path = folder / "report.md"
    files.write_file(path, "\n".join(lines))
    return path


def command(plan: Plan) -> str:
    """What makes this study again."""
    words = ["ditlab", "study", plan.study, "--recipe", plan.recipe.name]
    for name in ("seeds", "images", "count"):
        if getattr(plan, name):
            words += [f"--{name}", str(getattr(plan, name))]
    if plan.network != "efficientnet-lite0":
        words += ["--network", plan.network]
    return " ".join(words)


def _value(floor: dict[str, dict[str, float | None]], metric: str) -> str:
    value = floor.get(metric, {}).get("value")
    return "not measured" if value is None else f"{value:.4g}"


def _samples(results: Sequence[Result], folder: Path) -> None:
    """A row of images for each setting's first seed."""
    from PIL import ImageDraw, ImageFont

    seed = results[0].values.get("seed")
    chosen = [result for result in results if result.values.get("seed") == seed]
    strips = [(result.name, folder / "cells" / f"{result.name}.png") for result in chosen]
    rows = [(name, _opened(path)) for name, path in strips if path.exists()]
    if not rows:
        return
    font = ImageFont.load_default(size=16)
    left = int(max(font.getlength(f"{name}: 0000.0") for name, _ in rows)) + 20
    paper = Image.new("RGB", (left + max(row.width for _, row in rows), sum(row.height for _, row in rows)), "white")
    draw, top = ImageDraw.Draw(paper), 0
    distances = {result.name: result.distance for result in chosen}
    for name, row in rows:
        draw.text(
            (left - 10, top + row.height // 2),
            f"{name}: {distances[name]:.4g}",
            fill=(40, 40, 40),
            font=font,
            anchor="rm",
        )
        paper.paste(row, (left, top))
        top += row.height
    scale = min(1.0, 1800 / paper.width)
    size = (round(paper.width * scale), round(paper.height * scale))
    write_png(paper.resize(size, Image.Resampling.LANCZOS), folder / "samples.png")


def _opened(path: Path) -> Image.Image:
    with Image.open(path) as image:
        return image.convert("RGB")
