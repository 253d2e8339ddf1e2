"""Does quality follow compute? Sizes by patches at equal images (DiT, sections 5 and 6, figures 6 to 9)."""

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
from ditlab.study.study import Study, cell, expense, grouped, mean_and_spread, quality, quality_header
from ditlab.study.study_run import Result, StudyRun

TIMES = (4.0, 0.25)  # small models longer, large ones shorter
PAPER = (0.34, 0.53)  # what table 4's twelve FIDs at 400K steps give by the same sum: patch 8 to 2, and S to XL


def cells(form: StudyPreset, seeds: int) -> list[StudyRun]:
    """Every size at every patch; the small ones four times as long, the largest a quarter, at comparable compute."""
    made = []
    sizes, patches = list(form.sizes), form.patches
    longer = [(sizes[0], patches[-1]), (form.size, patches[1])]
    shorter = [(sizes[-1], patches[-1]), (sizes[-1], patches[1])]
    for seed in range(seeds):
        for size in sizes:
            for patch in patches:
                made.append(_cell(form, size, patch, 1.0, seed))
        made += [_cell(form, size, patch, TIMES[0], seed) for size, patch in longer]
        made += [_cell(form, size, patch, TIMES[1], seed) for size, patch in shorter]
    return made


def _cell(form: StudyPreset, size: str, patch: int, times: float, seed: int) -> StudyRun:
    train = form.recipe.train
    images = round(train.images * times)
    recipe = replace(form.recipe, model=form.dit(size, patch), train=replace(train, images=images, samples=images))
    name = f"{size}-{patch}{'' if times == 1 else f'-x{times:g}'}-seed{seed}"
    return cell(form, name, {"size": size, "patch": patch, "times": times, "seed": seed}, recipe)


def report(results: Sequence[Result], folder: Path) -> list[str]:
    """Tables, fits and figures."""
    metric = results[0].metric
    equal = [result for result in results if result.values["times"] == 1]
    gmacs, distances = [result.network["gmacs"] for result in equal], [result.distance for result in equal]
    compute = fit(np.log10(gmacs), distances)
    power = fit(np.log10(gmacs), np.log10(distances))
    parameters = fit(np.log10([result.network["parameters"] for result in equal]), distances)
    lines = _finding(metric, compute, parameters)
    lines += [
        f"Line: {metric} = {compute.intercept:.4g} {compute.slope:+.4g} (± {compute.error:.2g}) log10 GMACs, residual "
        f"{compute.residual:.3g}. Power law: {metric} goes with GMACs to the power {power.slope:.3f} ± {power.error:.3f} "
        f"(correlation of the logarithms {power.correlation:.3f}).",
        "",
    ]
    lines += _table(equal, metric)
    _by_compute(equal, compute, metric, folder / "gmacs.png")
    _by(equal, "parameters", metric, folder / "parameters.png", "parameters", "patch")
    _by(equal, "tokens", metric, folder / "tokens.png", "tokens of a sample", "size")
    lines += [f"![{metric} against GMACs](gmacs.png)", ""]
    lines += ["## Tokens and parameters", "", *_within(equal, metric)]
    lines += [f"![{metric} against parameters](parameters.png)", "", f"![{metric} against tokens](tokens.png)", ""]
    lines += ["## Small and long against large and short", "", *_training(results, metric, folder / "training.png")]
    return lines


def _finding(metric: str, compute: Fit, parameters: Fit) -> list[str]:
    low, high = compute.interval
    verdict = "as in the paper (-0.93)" if compute.correlation <= -0.85 else "weaker than the paper's -0.93"
    return [
        f"**Correlation of log GMACs with {metric}: {compute.correlation:.3f}** (95% of resamplings: {low:.2f} to "
        f"{high:.2f}; by rank {compute.rank:.3f}; {compute.count} cells), {verdict}. Of log parameters with it: "
        f"{parameters.correlation:.3f}.",
        "",
    ]


def _table(results: Sequence[Result], metric: str) -> list[str]:
    header = ["model", "tokens", "parameters", "GMACs", "training GMACs", *quality_header(metric), "images/s"]
    rows = []
    for (size, patch), same in grouped(results, "size", "patch").items():
        first = same[0]
        rows.append(
            [
                f"{size}/{patch}",
                f"{first.network['tokens']:g}",
                *expense(first),
                f"{first.training['gmacs']:.3g}",
                *quality(same),
                f"{first.training['images_per_second']:,.0f}",
            ]
        )
    return markdown_table(header, rows)


def _by_compute(results: Sequence[Result], line: Fit, metric: str, path: Path) -> None:
    gmacs = np.array(sorted(result.network["gmacs"] for result in results))

    def also(axes: Any) -> None:
        axes.plot(gmacs, line.at(np.log10(gmacs)), "--", color="gray", label=f"fit, r = {line.correlation:.2f}")

    _by(results, "gmacs", metric, path, "GMACs of a forward pass of a sample", "size", also)


def _by(
    results: Sequence[Result], measure: str, metric: str, path: Path, label: str, lines: str, also: Any = None
) -> None:
    """The metric over one number of the network, cells of equal size (or patch) joined."""
    series = []
    for (value,), same in grouped(results, lines).items():
        points = [
            (seeds[0].network[measure], float(np.mean([r.distance for r in seeds])), f"{size}/{patch}")
            for (size, patch), seeds in grouped(same, "size", "patch").items()
        ]
        x, y, labels = zip(*sorted(points), strict=True)
        series.append(Series(f"{lines} {value}", x, y, labels))
    draw(path, series, label, f"{metric} (lower is better)", logx=True, also=also)


def _within(results: Sequence[Result], metric: str) -> list[str]:
    """At one size, what more tokens do; at one patch, what more parameters do."""
    lines, decades = [], []
    for names, other, what in (("size", "patch", "tokens"), ("patch", "size", "parameters")):
        slopes = []
        for (value,), same in grouped(results, names).items():
            ends = list(grouped(same, other).items())
            (first, at_first), (last, at_last) = ends[0], ends[-1]
            before, after = (float(np.mean([r.distance for r in seeds])) for seeds in (at_first, at_last))
            counts = [seeds[0].network[what] for seeds in (at_first, at_last)]
            spent = [seeds[0].network["gmacs"] for seeds in (at_first, at_last)]
            slopes.append(np.log(after / before) / np.log(spent[1] / spent[0]))
            lines.append(
                f"- {names} {value}, {other} {first[0]} to {last[0]}: {what} times {counts[1] / counts[0]:.3g}, GMACs times "
                f"{spent[1] / spent[0]:.3g}, {metric} {before:.4g} to {after:.4g}"
            )
        decades.append(10 ** float(np.mean(slopes)))
    finding = (
        f"Ten times the GMACs multiply {metric} by **{decades[0]:.2f} where they come from tokens**, the parameters staying as "
        f"they are, and by **{decades[1]:.2f} where they come from depth and width** (the paper's FIDs: {PAPER[0]} and "
        f"{PAPER[1]})."
    )
    return [finding, "", *lines, ""]


def _training(results: Sequence[Result], metric: str, path: Path) -> list[str]:
    rows, series = [], []
    for (size, patch), same in grouped(results, "size", "patch").items():
        points = []
        for (times,), seeds in sorted(grouped(same, "times").items()):
            spent, distance = seeds[0].training["gmacs"], [result.distance for result in seeds]
            points.append((spent, float(np.mean(distance)), f"{size}/{patch}" + (f" x{times:g}" if times != 1 else "")))
            rows.append((spent, f"{size}/{patch}", f"{seeds[0].training['images']:,.0f}", mean_and_spread(distance)))
        x, y, labels = zip(*points, strict=True)
        series.append(Series(f"{size}/{patch}", x, y, labels))
    draw(path, series, "training compute, GMACs", f"{metric} (lower is better)", logx=True)
    body = [[model, images, f"{spent:.3g}", distance] for spent, model, images, distance in sorted(rows)]
    return [
        *_at_equal_compute(results, metric),
        "All cells by the compute their training took (three forward passes an image).",
        "",
        *markdown_table(["model", "images", "training GMACs", f"{metric} ↓"], body),
        f"![{metric} against training compute](training.png)",
        "",
    ]


def _at_equal_compute(results: Sequence[Result], metric: str) -> list[str]:
    """Each training that is longer or shorter, beside the usual one that took about as much compute."""
    found = {
        key: (seeds[0], float(np.mean([r.distance for r in seeds])))
        for key, seeds in grouped(results, "size", "patch", "times").items()
    }
    usual = [(spent, distance) for (_, _, times), (spent, distance) in found.items() if times == 1]
    lines = []
    for (size, patch, times), (result, distance) in found.items():
        if times != 1:
            compute = result.training["gmacs"]
            near, other = min(usual, key=lambda pair: abs(np.log(pair[0].training["gmacs"] / compute)))
            lines.append(
                f"- {size}/{patch} on {times:g} times the images: {metric} {distance:.4g} for {compute:.3g} training GMACs; "
                f"{near.values['size']}/{near.values['patch']} has {other:.4g} for {near.training['gmacs']:.3g}"
            )
    return [*lines, ""]


STUDY = Study(
    "Scaling",
    "Does the quality of samples follow the compute of a forward pass, over sizes and patches, at equal images?",
    cells,
    report,
)
