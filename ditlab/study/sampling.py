"""Can sampling compute buy back model compute? Steps against size, samplers, guidance (DiT, section 6 and figure 10)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

from ditlab.diffusion import GuidanceConfig
from ditlab.pipelines import SampleConfig
from ditlab.runtime.console import markdown_table
from ditlab.study.figure import Series, draw
from ditlab.study.preset import StudyPreset
from ditlab.study.study import Study, cell, grouped, mean_and_spread, quality, quality_header
from ditlab.study.study_run import Result, StudyRun

STEPS = (5, 10, 25, 50, 100, 250)
SAMPLERS = ("ddpm", "ddim", "euler", "heun", "dpm-solver")
SAME = {"rectified-flow": ("ddim",)}  # by schedule, samplers that are Euler to the letter there
SCALES = (1.0, 1.25, 1.5, 2.0, 3.0)
INTERVALS = ((0.0, 0.5), (0.25, 0.75), (0.5, 1.0))  # beside the whole of it, which SCALES has
GUIDED = 1.5


def cells(form: StudyPreset, seeds: int) -> list[StudyRun]:
    """Three sizes over steps; all samplers on the usual size; guidance scales and intervals on it."""
    made = []
    same = SAME.get(form.recipe.diffusion.schedule, ())
    different = tuple(sampler for sampler in SAMPLERS if sampler not in same)
    for seed in range(seeds):
        for size in form.sizes:
            samplers = different if size == form.size else ("ddpm",)
            for sampler in samplers:
                made += [_cell(form, size, seed, "steps", SampleConfig(sampler, steps)) for steps in STEPS]
        usual = form.sample
        for scale in SCALES:
            made.append(_cell(form, form.size, seed, "scale", replace(usual, guidance=GuidanceConfig(scale))))
        for low, high in INTERVALS:
            guidance = GuidanceConfig(GUIDED, low, high)
            made.append(_cell(form, form.size, seed, "interval", replace(usual, guidance=guidance)))
    return made


def _cell(form: StudyPreset, size: str, seed: int, part: str, sample: SampleConfig) -> StudyRun:
    recipe = replace(form.recipe, model=form.dit(size, form.patch))
    guidance = sample.guidance
    values = {"part": part, "size": size, "seed": seed, "sampler": sample.sampler, "steps": sample.steps}
    values |= {"scale": guidance.scale, "low": guidance.low, "high": guidance.high}
    name = f"{part}-{size}-{sample.sampler}-{sample.steps}-g{guidance.scale:g}-{guidance.low:g}-{guidance.high:g}-seed{seed}"
    return cell(form, name, values, recipe, sample, run=f"{size}-seed{seed}")


def report(results: Sequence[Result], folder: Path) -> list[str]:
    """The three questions, each with a table and a figure."""
    metric = results[0].metric
    parts = {part: same for (part,), same in grouped(results, "part").items()}
    ancestral = [result for result in parts["steps"] if result.values["sampler"] == "ddpm"]
    lines = ["## Sampling compute against model compute", "", *_buying(ancestral, metric)]
    _over_steps(ancestral, "size", metric, folder / "compute.png", compute=True)
    lines += _steps_table(ancestral, "size", metric)
    lines += [f"![{metric} against sampling compute](compute.png)", "", "## Samplers", ""]
    usual = [
        r
        for r in parts["steps"]
        if len({x.values["sampler"] for x in parts["steps"] if x.values["size"] == r.values["size"]}) > 1
    ]
    _over_steps(usual, "sampler", metric, folder / "samplers.png", compute=False)
    lines += ["Heun calls the network twice a step.", "", *_steps_table(usual, "sampler", metric)]
    lines += [f"![{metric} of samplers over network calls](samplers.png)", "", "## Guidance", ""]
    return lines + _guidance(parts["scale"], parts["interval"], metric, folder)


def _buying(results: Sequence[Result], metric: str) -> list[str]:
    """Whether a smaller model with more steps reaches a larger one's distance for less sampling compute."""
    lines, sizes = [], [size for (size,) in grouped(results, "size")]
    for small, large in pairwise(sizes):
        best = min((r for r in results if r.values["size"] == small), key=lambda r: r.distance)
        reached = [r for r in results if r.values["size"] == large and r.distance <= best.distance]
        said = f"- {small}'s best is {metric} {_at(best)}; {large} "
        if reached:
            said += f"is at {_at(min(reached, key=lambda r: r.sampling['gmacs']))}"
        else:
            said += "does not reach it with any number of steps here"
        lines.append(said)
    return [*lines, ""]


def _at(result: Result) -> str:
    return f"{result.distance:.4g} with {result.values['steps']} steps, {result.sampling['gmacs']:.3g} GMACs an image"


def _steps_table(results: Sequence[Result], rows: str, metric: str) -> list[str]:
    body = []
    for (value,), same in grouped(results, rows).items():
        by_steps = {steps: seeds for (steps,), seeds in grouped(same, "steps").items()}
        body.append([value, *(mean_and_spread([r.distance for r in by_steps[steps]]) for steps in STEPS)])
    return markdown_table([f"{metric} ↓: {rows}", *(f"{steps} steps" for steps in STEPS)], body)


def _over_steps(results: Sequence[Result], lines: str, metric: str, path: Path, compute: bool) -> None:
    measure = "gmacs" if compute else "network_calls"
    series = []
    for (value,), same in grouped(results, lines).items():
        points = [
            (seeds[0].sampling[measure], sum(r.distance for r in seeds) / len(seeds))
            for seeds in grouped(same, "steps").values()
        ]
        x, y = zip(*points, strict=True)
        series.append(Series(str(value), x, y, [str(steps) for (steps,) in grouped(same, "steps")]))
    label = "sampling compute, GMACs an image" if compute else "network calls an image"
    draw(path, series, label, f"{metric} (lower is better)", logx=True, logy=True)


def _guidance(scales: Sequence[Result], intervals: Sequence[Result], metric: str, folder: Path) -> list[str]:
    header = ["scale", "guided at t", *quality_header(metric)]
    rows, points = [], []
    for results in (scales, intervals):
        for (scale, low, high), same in grouped(results, "scale", "low", "high").items():
            rows.append([f"{scale:g}", f"{low:g} to {high:g}", *quality(same)])
            if results is scales:
                shares = [[r.number(name) for r in same] for name in ("precision", "recall")]
                numbers = [[r.distance for r in same], *shares]
                points.append((scale, *(sum(values) / len(values) for values in numbers)))
    x, distance, precision, recall = zip(*points, strict=True)
    draw(
        folder / "guidance.png",
        [Series("precision", x, precision), Series("recall", x, recall)],
        "guidance scale",
        "share",
    )
    draw(folder / "scale.png", [Series(metric, x, distance)], "guidance scale", f"{metric} (lower is better)")
    return [
        *markdown_table(header, rows),
        "![precision and recall over guidance](guidance.png)",
        "",
        f"![{metric} over guidance](scale.png)",
        "",
    ]


STUDY = Study(
    "Sampling",
    "What do more steps, another sampler, and guidance buy, and can they make up for a smaller model?",
    cells,
    report,
)
