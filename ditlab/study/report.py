"""The results of a study as ``results.json`` and as ``report.md`` with figures."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import torch
from PIL import Image

import ditlab
from ditlab.pipelines import write_png
from ditlab.pipelines.pictures import label_font
from ditlab.runtime import files
from ditlab.runtime.console import markdown_table
from ditlab.study.plan import STUDIES, Plan
from ditlab.study.study_run import RESULTS, Result


def write_report(plan: Plan, results: Sequence[Result], folder: Path) -> Path:
    """Write ``results.json``, the figures and ``report.md``; raises UserError if the folder is not writable."""
    study = STUDIES[plan.study]
    files.write_file(folder / "results.json", json.dumps([asdict(result) for result in results], indent=1) + "\n")
    _sample_sheet(results, folder)
    body = "\n".join(study.report(results, folder))
    setup = "\n".join(_setup(plan, results))
    page = f"""# {study.title}: {plan.recipe.name}

{study.question}

`{command(plan)}`

{body}
## Samples

The first samples of each run, not selected; all runs start from the same noise. Numbers: {results[0].metric}.

![samples of each run](samples.png)

## Setup

{setup}
Values that a table of this report lists as varied replace the values above.
"""
    path = folder / "report.md"
    files.write_file(path, page)
    return path


def command(plan: Plan) -> str:
    """The command that reproduces a study."""
    words = ["ditlab", "study", plan.study, "--recipe", plan.recipe.name]
    for name in ("seeds", "images", "count", "network"):
        if getattr(plan, name) != getattr(Plan, name):
            words += [f"--{name}", str(getattr(plan, name))]
    return " ".join(words)


def _setup(plan: Plan, results: Sequence[Result]) -> list[str]:
    """The settings all runs share, as a table."""
    preset, metric = plan.preset, results[0].metric
    train, sample, diffusion = preset.recipe.train, preset.recipe.sample, preset.recipe.diffusion
    seconds = {result.key["recipe"]["name"]: result.training["seconds"] for result in results}
    floor = results[0].floor.get(metric, {}).get("value")
    measured = [
        ("samples", f"{preset.count:,} per run, {sample.sampler}, {sample.steps} steps, no guidance"),
        ("labels", "in proportion to the training data"),
        ("metric", f"{metric} (lower is better)"),
        ("floor", f"{'not measured' if floor is None else f'{floor:.4g}'}, real images, one half against the other"),
    ]
    if STUDIES[plan.study].prompts:
        measured = [
            ("prompts", f"{preset.count:,} of each task, seen and held out, the same in all runs"),
            ("samples", f"{sample.sampler}, {sample.steps} steps, guidance {sample.guidance.scale:g}"),
            ("metric", "accuracy, % of images that are what their prompt says (higher is better)"),
        ]
    rows = [
        ("runs", f"{len(results)}, from {len(seconds)} trainings of {sum(seconds.values()) / 60:.0f} minutes in total"),
        ("training", f"{train.images:,} images, batch {train.batch}, learning rate {train.lr:g}, EMA {train.ema:g}"),
        ("diffusion", f"{diffusion.schedule}, {diffusion.target} prediction, {diffusion.times} t"),
        *measured,
        ("real images", f"{plan.recipe.data.source}, {plan.recipe.data.split} split (the training images)"),
        ("versions", f"ditlab {ditlab.__version__}, torch {torch.__version__}"),
    ]
    return markdown_table(["setting", "value"], rows)


def _sample_sheet(results: Sequence[Result], folder: Path) -> None:
    """One row of samples for each setting, of its first seed."""
    from PIL import ImageDraw

    rows = []
    for result in results:
        path = folder / RESULTS / f"{result.name}.png"
        if result.values["seed"] == results[0].values["seed"] and path.exists():
            with Image.open(path) as image:
                rows.append((f"{result.name}: {result.distance:.4g}", image.convert("RGB")))
    if not rows:
        return
    font = label_font(16)
    left = int(max(font.getlength(label) for label, _ in rows)) + 20
    sheet = Image.new("RGB", (left + max(row.width for _, row in rows), sum(row.height for _, row in rows)), "white")
    draw, top = ImageDraw.Draw(sheet), 0
    for label, row in rows:
        draw.text((left - 10, top + row.height // 2), label, fill=(40, 40, 40), font=font, anchor="rm")
        sheet.paste(row, (left, top))
        top += row.height
    scale = min(1.0, 1800 / sheet.width)
    size = (round(sheet.width * scale), round(sheet.height * scale))
    write_png(sheet.resize(size, Image.Resampling.LANCZOS), folder / "samples.png")
