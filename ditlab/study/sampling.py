"""Sampling compute against model compute: steps and sizes, samplers, guidance (DiT, section 6 and figure 10)."""

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
from ditlab.study.study import Study, group_by, mean, mean_and_std, mean_distance, metric_columns, metric_header
from ditlab.study.study_run import Result, StudyRun

STEPS = (5, 10, 25, 50, 100, 250)
SAMPLERS = ("ddpm", "ddim", "euler", "heun", "dpm-solver")
DUPLICATES = {"rectified-flow": ("ddim",)}  # by schedule: samplers identical to Euler
SCALES = (1.0, 1.25, 1.5, 2.0, 3.0)
INTERVALS = ((0.0, 0.5), (0.25, 0.75), (0.5, 1.0))  # SCALES holds the whole interval
INTERVAL_SCALE = 1.5


def runs(preset: StudyPreset, seeds: int) -> list[StudyRun]:
    """All sizes over steps with DDPM; all samplers, guidance scales and guidance intervals on the default size."""
    planned = []
    duplicates = DUPLICATES.get(preset.recipe.diffusion.schedule, ())
    samplers = tuple(sampler for sampler in SAMPLERS if sampler not in duplicates)
    for seed in range(seeds):
        for size in preset.sizes:
            for sampler in samplers if size == preset.size else ("ddpm",):
                planned += [_run(preset, size, seed, "steps", SampleConfig(sampler, steps)) for steps in STEPS]
        for scale in SCALES:
            sample = replace(preset.sample, guidance=GuidanceConfig(scale))
            planned.append(_run(preset, preset.size, seed, "scale", sample))
        for low, high in INTERVALS:
            sample = replace(preset.sample, guidance=GuidanceConfig(INTERVAL_SCALE, low, high))
            planned.append(_run(preset, preset.size, seed, "interval", sample))
    return planned


def _run(preset: StudyPreset, size: str, seed: int, part: str, sample: SampleConfig) -> StudyRun:
    recipe = replace(preset.recipe, model=preset.dit(size, preset.patch))
    scale, low, high = sample.guidance.scale, sample.guidance.low, sample.guidance.high
    values = {"part": part, "size": size, "seed": seed, "sampler": sample.sampler, "steps": sample.steps}
    values |= {"scale": scale, "low": low, "high": high}
    name = f"{part}-{size}-{sample.sampler}-{sample.steps}-g{scale:g}-{low:g}-{high:g}-seed{seed}"
    return preset.run(name, values, recipe, sample, training=f"{size}-seed{seed}")


def report(results: Sequence[Result], folder: Path) -> list[str]:
    """Three sections: steps against model size, samplers, guidance."""
    metric = results[0].metric
    parts = {part: group for (part,), group in group_by(results, "part").items()}
    ddpm = [result for result in parts["steps"] if result.values["sampler"] == "ddpm"]
    lines = ["## Sampling compute against model compute", "", *_compute_lines(ddpm, metric)]
    _plot_steps(ddpm, "size", metric, folder / "compute.png", compute=True)
    lines += _steps_table(ddpm, "size", metric)
    lines += [f"![{metric} against sampling compute](compute.png)", "", "## Samplers", ""]
    default = next(group for group in group_by(parts["steps"], "size").values() if len(group_by(group, "sampler")) > 1)
    _plot_steps(default, "sampler", metric, folder / "samplers.png", compute=False)
    lines += ["Heun calls the network twice per step.", "", *_steps_table(default, "sampler", metric)]
    lines += [f"![{metric} of samplers against network calls](samplers.png)", "", "## Guidance", ""]
    return lines + _guidance(parts["scale"], parts["interval"], metric, folder)


def _compute_lines(results: Sequence[Result], metric: str) -> list[str]:
    """For each two neighbouring sizes: the least sampling compute at which the larger matches the smaller one's best."""
    lines, sizes = [], list(group_by(results, "size").items())
    for ((small,), small_results), ((large,), large_results) in pairwise(sizes):
        best = min(small_results, key=lambda r: r.distance)
        matching = [r for r in large_results if r.distance <= best.distance]
        line = f"- The best {metric} of {small} is {_describe(best)}; {large} "
        if matching:
            line += f"has {_describe(min(matching, key=lambda r: r.sampling['gmacs']))}"
        else:
            line += "does not reach it with any measured number of steps"
        lines.append(line)
    return [*lines, ""]


def _describe(result: Result) -> str:
    return f"{result.distance:.4g} with {result.values['steps']} steps, {result.sampling['gmacs']:.3g} GMACs per image"


def _steps_table(results: Sequence[Result], rows: str, metric: str) -> list[str]:
    body = []
    for (value,), group in group_by(results, rows).items():
        body.append(
            [value, *(mean_and_std([r.distance for r in seeds]) for seeds in group_by(group, "steps").values())]
        )
    return markdown_table([f"{metric} ↓: {rows}", *(f"{steps} steps" for steps in STEPS)], body)


def _plot_steps(results: Sequence[Result], lines: str, metric: str, path: Path, compute: bool) -> None:
    measure = "gmacs" if compute else "network_calls"
    series = []
    for (value,), group in group_by(results, lines).items():
        by_steps = group_by(group, "steps")
        x = [seeds[0].sampling[measure] for seeds in by_steps.values()]
        y = [mean_distance(seeds) for seeds in by_steps.values()]
        series.append(Series(str(value), x, y, [str(steps) for (steps,) in by_steps]))
    label = "sampling compute, GMACs per image" if compute else "network calls per image"
    draw(path, series, label, f"{metric} (lower is better)", logx=True, logy=True)


def _guidance(scales: Sequence[Result], intervals: Sequence[Result], metric: str, folder: Path) -> list[str]:
    rows = [
        [f"{scale:g}", f"{low:g} to {high:g}", *metric_columns(seeds)]
        for results in (scales, intervals)
        for (scale, low, high), seeds in group_by(results, "scale", "low", "high").items()
    ]
    by_scale = {scale: seeds for (scale,), seeds in group_by(scales, "scale").items()}
    x, y = list(by_scale), [mean_distance(seeds) for seeds in by_scale.values()]
    shares = [
        Series(name, x, [mean([r.number(name) for r in seeds]) for seeds in by_scale.values()])
        for name in ("precision", "recall")
    ]
    draw(folder / "guidance.png", shares, "guidance scale", "precision, recall")
    draw(folder / "scale.png", [Series(metric, x, y)], "guidance scale", f"{metric} (lower is better)")
    return [
        *markdown_table(["scale", "interval of t", *metric_header(metric)], rows),
        "![precision and recall against the guidance scale](guidance.png)",
        "",
        f"![{metric} against the guidance scale](scale.png)",
        "",
    ]


STUDY = Study(
    "Sampling",
    "What do more steps, other samplers and guidance improve, and can they replace a larger model?",
    runs,
    report,
)
