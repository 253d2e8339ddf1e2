"""Sample quality against compute: sizes and patch sizes at equal images (DiT, sections 5 and 6, figures 6 to 9)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from ditlab.runtime.console import markdown_table
from ditlab.study.figure import Series, draw
from ditlab.study.fit import Fit, fit
from ditlab.study.preset import StudyPreset
from ditlab.study.study import (
    Study,
    cost_columns,
    group_by,
    mean_and_std,
    mean_distance,
    metric_columns,
    metric_header,
)
from ditlab.study.study_run import Result, StudyRun

LONGER, SHORTER = 4.0, 0.25  # training length of the extra runs: small models longer, large ones shorter
PAPER = (0.34, 0.53)  # by the same computation from the 12 FIDs of table 4, 400K steps: patch 8 to 2, and S to XL


def runs(preset: StudyPreset, seeds: int) -> list[StudyRun]:
    """Every size and patch size at equal images; two small models 4 times as long and two of the largest a quarter."""
    planned = []
    sizes, patches = list(preset.sizes), preset.patches
    settings = [(size, patch, 1.0) for size in sizes for patch in patches]
    settings += [(sizes[0], patches[-1], LONGER), (preset.size, patches[1], LONGER)]
    settings += [(sizes[-1], patches[-1], SHORTER), (sizes[-1], patches[1], SHORTER)]
    for seed in range(seeds):
        for size, patch, times in settings:
            images = round(preset.recipe.train.images * times)
            train = replace(preset.recipe.train, images=images, samples=images)
            recipe = replace(preset.recipe, model=preset.dit(size, patch), train=train)
            name = f"{size}-{patch}{'' if times == 1 else f'-x{times:g}'}-seed{seed}"
            planned.append(preset.run(name, {"size": size, "patch": patch, "times": times, "seed": seed}, recipe))
    return planned


def report(results: Sequence[Result], folder: Path) -> list[str]:
    """Fits, tables and figures."""
    metric = results[0].metric
    equal = [result for result in results if result.values["times"] == 1]
    gmacs, distances = [result.network["gmacs"] for result in equal], [result.distance for result in equal]
    line = fit(np.log10(gmacs), distances)
    power = fit(np.log10(gmacs), np.log10(distances))
    parameters = fit(np.log10([result.network["parameters"] for result in equal]), distances)
    _plot(equal, "gmacs", metric, folder / "gmacs.png", "GMACs of a forward pass", "size", line)
    _plot(equal, "parameters", metric, folder / "parameters.png", "parameters", "patch")
    _plot(equal, "tokens", metric, folder / "tokens.png", "tokens per sample", "size")
    return [
        *_correlation(metric, line, parameters),
        f"Linear fit: {metric} = {line.intercept:.4g} {line.slope:+.4g} (± {line.error:.2g}) log10 GMACs, residual "
        f"{line.residual:.3g}. Power law: {metric} is proportional to GMACs to the power {power.slope:.3f} ± "
        f"{power.error:.3f} (correlation of the logarithms {power.correlation:.3f}).",
        "",
        *_models_table(equal, metric),
        f"![{metric} against GMACs](gmacs.png)",
        "",
        "## Tokens and parameters",
        "",
        *_tokens_and_parameters(equal, metric),
        f"![{metric} against parameters](parameters.png)",
        "",
        f"![{metric} against tokens](tokens.png)",
        "",
        "## Training compute: small models longer, large models shorter",
        "",
        *_training_compute(results, metric, folder / "training.png"),
    ]


def _correlation(metric: str, compute: Fit, parameters: Fit) -> list[str]:
    low, high = compute.interval
    verdict = "as in the paper (-0.93)" if compute.correlation <= -0.85 else "weaker than the paper's -0.93"
    return [
        f"**Correlation of log GMACs with {metric}: {compute.correlation:.3f}** (95% bootstrap interval {low:.2f} to "
        f"{high:.2f}; Spearman {compute.rank:.3f}; {compute.count} runs), {verdict}. Correlation of log parameters with "
        f"{metric}: {parameters.correlation:.3f}.",
        "",
    ]


def _models_table(results: Sequence[Result], metric: str) -> list[str]:
    header = ["model", "tokens", "parameters", "GMACs", "training GMACs", *metric_header(metric), "images/s"]
    rows = [
        [
            f"{size}/{patch}",
            f"{seeds[0].network['tokens']:g}",
            *cost_columns(seeds[0]),
            f"{seeds[0].training['gmacs']:.3g}",
            *metric_columns(seeds),
            f"{seeds[0].training['images_per_second']:,.0f}",
        ]
        for (size, patch), seeds in group_by(results, "size", "patch").items()
    ]
    return markdown_table(header, rows)


def _plot(
    results: Sequence[Result], measure: str, metric: str, path: Path, label: str, lines: str, line: Fit | None = None
) -> None:
    """The metric against one number of the network; runs of equal size (or patch size) are joined; optionally the fit."""
    series = []
    for (value,), group in group_by(results, lines).items():
        points = [
            (seeds[0].network[measure], mean_distance(seeds), f"{size}/{patch}")
            for (size, patch), seeds in group_by(group, "size", "patch").items()
        ]
        x, y, labels = zip(*sorted(points), strict=True)
        series.append(Series(f"{lines} {value}", x, y, labels))

    def fitted(axes: Any) -> None:
        if line is not None:
            x = np.array(sorted(result.network[measure] for result in results))
            axes.plot(x, line.at(np.log10(x)), "--", color="gray", label=f"fit, r = {line.correlation:.2f}")

    draw(path, series, label, f"{metric} (lower is better)", logx=True, also=fitted)


def _tokens_and_parameters(results: Sequence[Result], metric: str) -> list[str]:
    """The effect of more tokens at each size, and of more parameters at each patch size."""
    lines, factors = [], []
    for fixed, varied, what in (("size", "patch", "tokens"), ("patch", "size", "parameters")):
        slopes = []
        for (value,), group in group_by(results, fixed).items():
            ends = list(group_by(group, varied).items())
            (first, seeds_first), (last, seeds_last) = ends[0], ends[-1]
            before, after = mean_distance(seeds_first), mean_distance(seeds_last)
            count = seeds_last[0].network[what] / seeds_first[0].network[what]
            gmacs = seeds_last[0].network["gmacs"] / seeds_first[0].network["gmacs"]
            slopes.append(np.log(after / before) / np.log(gmacs))
            lines.append(
                f"- {fixed} {value}, {varied} {first[0]} to {last[0]}: {what} x {count:.3g}, GMACs x {gmacs:.3g}, {metric} "
                f"{before:.4g} to {after:.4g}"
            )
        factors.append(10 ** float(np.mean(slopes)))
    finding = (
        f"Ten times the GMACs multiply {metric} by **{factors[0]:.2f} if they come from more tokens** at equal parameters, and "
        f"by **{factors[1]:.2f} if they come from depth and width** (from the paper's FIDs: {PAPER[0]} and {PAPER[1]})."
    )
    return [finding, "", *lines, ""]


def _training_compute(results: Sequence[Result], metric: str, path: Path) -> list[str]:
    rows, series = [], []
    for (size, patch), group in group_by(results, "size", "patch").items():
        points = []
        for (times,), seeds in sorted(group_by(group, "times").items()):
            gmacs, distances = seeds[0].training["gmacs"], [result.distance for result in seeds]
            points.append((gmacs, mean_distance(seeds), f"{size}/{patch}" + (f" x{times:g}" if times != 1 else "")))
            rows.append((gmacs, f"{size}/{patch}", f"{seeds[0].training['images']:,.0f}", mean_and_std(distances)))
        x, y, labels = zip(*points, strict=True)
        series.append(Series(f"{size}/{patch}", x, y, labels))
    draw(path, series, "training compute, GMACs", f"{metric} (lower is better)", logx=True)
    body = [[model, images, f"{gmacs:.3g}", distance] for gmacs, model, images, distance in sorted(rows)]
    return [
        *_equal_compute(results, metric),
        "All runs by training compute, counted as three forward passes per image.",
        "",
        *markdown_table(["model", "images", "training GMACs", f"{metric} ↓"], body),
        f"![{metric} against training compute](training.png)",
        "",
    ]


def _equal_compute(results: Sequence[Result], metric: str) -> list[str]:
    """Each longer or shorter training next to the standard one of the nearest training compute."""
    groups = group_by(results, "size", "patch", "times")
    standard = [seeds for (_, _, times), seeds in groups.items() if times == 1]
    lines = []
    for (size, patch, times), seeds in groups.items():
        if times != 1:
            gmacs = seeds[0].training["gmacs"]
            near = min(standard, key=lambda other: abs(np.log(other[0].training["gmacs"] / gmacs)))
            lines.append(
                f"- {size}/{patch}, {times:g} times the images: {metric} {mean_distance(seeds):.4g} for {gmacs:.3g} training "
                f"GMACs; {near[0].values['size']}/{near[0].values['patch']}: {mean_distance(near):.4g} for "
                f"{near[0].training['gmacs']:.3g}"
            )
    return [*lines, ""]


STUDY = Study(
    "Scaling",
    "Does sample quality follow the compute of a forward pass, over sizes and patch sizes, at equal images?",
    runs,
    report,
)
