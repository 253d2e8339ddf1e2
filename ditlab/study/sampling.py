"""Sampling compute against model compute: steps and sizes, samplers, guidance (DiT, section 6 and figure 10)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

from ditlab.diffusion import GuidanceConfig
from ditlab.pipelines import SampleConfig
from ditlab.runtime.console import markdown_table
from ditlab.study import study
from ditlab.study.figure import Series, draw
from ditlab.study.preset import StudyPreset
from ditlab.study.study_run import Result, StudyRun

STEPS = (5, 10, 25, 50, 100, 250)
SAMPLERS = ("ddpm", "ddim", "euler", "heun", "dpm-solver")
DUPLICATES = {"rectified-flow": ("ddim",)}  # by schedule: samplers identical to Euler
SCALES = (1.0, 1.25, 1.5, 2.0, 3.0)
INTERVALS = ((0.0, 0.5), (0.25, 0.75), (0.5, 1.0))  # SCALES holds the whole interval
INTERVAL_SCALE = 1.5
GUIDANCE = ("scale", "low", "high")
MEASURES = {
    "size": ("gmacs", "sampling compute, GMACs per image"),
    "sampler": ("network_calls", "network calls per image"),
}
NOT_REACHED = "does not reach it with any measured number of steps"


def runs(preset: StudyPreset) -> list[StudyRun]:
    """All sizes over steps with DDPM; all samplers, guidance scales and guidance intervals on the default size."""
    planned, default = [], preset.recipe.sample
    duplicates = DUPLICATES.get(preset.recipe.diffusion.schedule, ())
    samplers = tuple(sampler for sampler in SAMPLERS if sampler not in duplicates)
    for size in preset.sizes:
        for sampler in samplers if size == preset.size else ("ddpm",):
            planned += [_run(preset, size, "steps", SampleConfig(sampler, steps)) for steps in STEPS]
    guided = [("scale", GuidanceConfig(scale)) for scale in SCALES]
    guided += [("interval", GuidanceConfig(INTERVAL_SCALE, low, high)) for low, high in INTERVALS]
    return planned + [_run(preset, preset.size, part, replace(default, guidance=each)) for part, each in guided]


def _run(preset: StudyPreset, size: str, part: str, sample: SampleConfig) -> StudyRun:
    recipe = replace(preset.recipe, model=preset.dit(size, preset.patch))
    scale, low, high = sample.guidance.scale, sample.guidance.low, sample.guidance.high
    values = {"part": part, "size": size, "sampler": sample.sampler, "steps": sample.steps}
    values |= {"scale": scale, "low": low, "high": high}
    name = f"{part}-{size}-{sample.sampler}-{sample.steps}-g{scale:g}-{low:g}-{high:g}"
    return preset.run(name, values, recipe, sample, training=size)


def report(results: Sequence[Result], folder: Path) -> list[str]:
    """Three sections: steps against model size, samplers, guidance."""
    metric = results[0].metric
    parts = study.group_by(results, "part")
    ddpm = study.group_by(parts["steps"], "sampler")["ddpm"]
    sizes = study.group_by(parts["steps"], "size").values()
    default = next(group for group in sizes if len(study.group_by(group, "sampler")) > 1)
    return [
        "## Sampling compute against model compute",
        "",
        *_compute_lines(ddpm, metric),
        *_steps_table(ddpm, "size", metric),
        *_plot_steps(ddpm, "size", folder / "compute.png", "against sampling compute"),
        "## Samplers",
        "",
        "Heun calls the network twice per step.",
        "",
        *_steps_table(default, "sampler", metric),
        *_plot_steps(default, "sampler", folder / "samplers.png", "of samplers against network calls"),
        "## Guidance",
        "",
        *_guidance(parts["scale"], parts["interval"], metric, folder),
    ]


def _compute_lines(results: Sequence[Result], metric: str) -> list[str]:
    """For each two neighbouring sizes: the least sampling compute at which the larger matches the smaller one's best."""
    lines = []
    for (small, small_results), (large, large_results) in pairwise(study.group_by(results, "size").items()):
        best = min(small_results, key=lambda r: r.distance)
        matching = [r for r in large_results if r.distance <= best.distance]
        least = f"has {_describe(min(matching, key=lambda r: r.sampling['gmacs']))}" if matching else NOT_REACHED
        lines.append(f"- The best {metric} of {small} is {_describe(best)}; {large} {least}")
    return [*lines, ""]


def _describe(result: Result) -> str:
    return f"{result.distance:.4g} with {result.values['steps']} steps, {result.sampling['gmacs']:.3g} GMACs per image"


def _steps_table(results: Sequence[Result], rows: str, metric: str) -> list[str]:
    body = [
        [value, *(study.mean_and_std([r.distance for r in seeds]) for seeds in study.group_by(group, "steps").values())]
        for value, group in study.group_by(results, rows).items()
    ]
    return markdown_table([f"{metric} ↓: {rows}", *(f"{steps} steps" for steps in STEPS)], body)


def _plot_steps(results: Sequence[Result], lines: str, path: Path, title: str) -> list[str]:
    series, metric = [], results[0].metric
    measure, xlabel = MEASURES[lines]
    for value, group in study.group_by(results, lines).items():
        settings = study.group_by(group, "steps").items()
        points = [(seeds[0].sampling[measure], study.mean_distance(seeds), str(steps)) for steps, seeds in settings]
        series.append(Series(str(value), points))
    return draw(path, f"{metric} {title}", series, xlabel, f"{metric} (lower is better)", log="xy")


def _guidance(scales: Sequence[Result], intervals: Sequence[Result], metric: str, folder: Path) -> list[str]:
    settings = [*study.group_by(scales, *GUIDANCE).items(), *study.group_by(intervals, *GUIDANCE).items()]
    columns = study.columns(metric)
    rows = [
        [f"{scale:g}", f"{low:g} to {high:g}", *(column(seeds) for column in columns.values())]
        for (scale, low, high), seeds in settings
    ]

    def curve(name: str) -> Series:
        by_scale = study.group_by(scales, "scale").items()
        return Series(name, [(scale, study.mean([r.number(name) for r in seeds]), "") for scale, seeds in by_scale])

    shares = [curve("precision"), curve("recall")]
    shares_title, title = "precision and recall against the guidance scale", f"{metric} against the guidance scale"
    return [
        *markdown_table(["scale", "interval of t", *columns], rows),
        *draw(folder / "guidance.png", shares_title, shares, "guidance scale", "precision, recall"),
        *draw(folder / "scale.png", title, [curve(metric)], "guidance scale", f"{metric} (lower is better)"),
    ]


STUDY = study.Study(
    "Sampling",
    "What do more steps, other samplers and guidance improve, and can they replace a larger model?",
    runs,
    report,
)
