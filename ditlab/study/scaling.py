"""Sample quality against compute: sizes and patch sizes at equal images (DiT, sections 5 and 6, figures 6 to 9)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from ditlab.runtime.console import markdown_table
from ditlab.study import study
from ditlab.study.figure import Series, draw
from ditlab.study.fit import fit
from ditlab.study.preset import StudyPreset
from ditlab.study.study_run import Result, StudyRun

LONGER, SHORTER = 4.0, 0.25  # training length of the extra runs: small models longer, large ones shorter
PAPER = (0.34, 0.53)  # by the same computation from the 12 FIDs of table 4, 400K steps: patch 8 to 2, and S to XL


def runs(preset: StudyPreset) -> list[StudyRun]:
    """Every size and patch size at equal images; two small models 4 times as long and two of the largest a quarter."""
    planned, sizes, patches = [], list(preset.sizes), preset.patches
    settings = [(size, patch, 1.0) for size in sizes for patch in patches]
    settings += [(sizes[0], patches[-1], LONGER), (preset.size, patches[1], LONGER)]
    settings += [(sizes[-1], patches[-1], SHORTER), (sizes[-1], patches[1], SHORTER)]
    for size, patch, times in settings:
        images = round(preset.recipe.train.images * times)
        train = replace(preset.recipe.train, images=images, samples=images)
        recipe = replace(preset.recipe, model=preset.dit(size, patch), train=train)
        name = f"{size}-{patch}{'' if times == 1 else f'-x{times:g}'}"
        planned.append(preset.run(name, {"size": size, "patch": patch, "times": times}, recipe))
    return planned


def report(results: Sequence[Result], folder: Path) -> list[str]:
    """Fits, tables and figures."""
    metric, equal = results[0].metric, study.group_by(results, "times")[1.0]
    gmacs, distances = [result.network["gmacs"] for result in equal], [result.distance for result in equal]
    line = fit(np.log10(gmacs), distances)
    parameters = fit(np.log10([result.network["parameters"] for result in equal]), distances)
    low, high = line.interval
    verdict = "as in the paper (-0.93)" if line.correlation <= -0.85 else "weaker than the paper's -0.93"
    points = [(x, float(line.at(np.log10(x))), "") for x in sorted(gmacs)]
    line_series = Series(f"fit, r = {line.correlation:.2f}", points, "--", "gray")
    columns = study.columns(metric, "tokens", "parameters", "GMACs", "training GMACs")
    columns["images/s"] = study.COLUMNS["images/s"]
    law = "No power law: some values are not above 0."  # an unbiased kernel distance may be negative
    if min(distances) > 0:
        power = fit(np.log10(gmacs), np.log10(distances))
        law = (
            f"Power law: {metric} is proportional to GMACs to the power {power.slope:.3f} ± {power.error:.3f} (correlation of "
            f"the logarithms {power.correlation:.3f})."
        )
    models = {f"{size}/{patch}": seeds for (size, patch), seeds in study.group_by(equal, "size", "patch").items()}
    return [
        f"**Correlation of log GMACs with {metric}: {line.correlation:.3f}** (95% bootstrap interval {low:.2f} to {high:.2f}; "
        f"Spearman {line.rank:.3f}; {line.count} runs), {verdict}. Correlation of log parameters with {metric}: "
        f"{parameters.correlation:.3f}.",
        "",
        f"Linear fit: {metric} = {line.intercept:.4g} {line.slope:+.4g} (± {line.error:.2g}) log10 GMACs, residual "
        f"{line.residual:.3g}. {law}",
        "",
        *study.results_table("model", models, columns),
        *_plot(equal, "gmacs", folder, "GMACs", "GMACs of a forward pass", "size", line_series),
        "## Tokens and parameters",
        "",
        *_tokens_and_parameters(equal, metric),
        *_plot(equal, "parameters", folder, "parameters", "parameters", "patch"),
        *_plot(equal, "tokens", folder, "tokens", "tokens per sample", "size"),
        "## Training compute: small models longer, large models shorter",
        "",
        *_training_compute(results, metric, folder / "training.png"),
    ]


def _plot(
    results: Sequence[Result], measure: str, folder: Path, name: str, label: str, lines: str, *others: Series
) -> list[str]:
    """The metric against one number of the network; runs of equal size (or patch size) are joined."""
    series, metric = [], results[0].metric
    for value, group in study.group_by(results, lines).items():
        points = [
            (seeds[0].network[measure], study.mean_distance(seeds), f"{size}/{patch}")
            for (size, patch), seeds in study.group_by(group, "size", "patch").items()
        ]
        series.append(Series(f"{lines} {value}", sorted(points)))
    title, ylabel = f"{metric} against {name}", f"{metric} (lower is better)"
    return draw(folder / f"{measure}.png", title, [*series, *others], label, ylabel, log="x")


def _tokens_and_parameters(results: Sequence[Result], metric: str) -> list[str]:
    """The effect of more tokens at each size, and of more parameters at each patch size."""
    lines, factors = [], []
    for fixed, varied, what in (("size", "patch", "tokens"), ("patch", "size", "parameters")):
        slopes = []
        for value, group in study.group_by(results, fixed).items():
            (first, seeds_first), *_, (last, seeds_last) = study.group_by(group, varied).items()
            before, after = study.mean_distance(seeds_first), study.mean_distance(seeds_last)
            count = seeds_last[0].network[what] / seeds_first[0].network[what]
            gmacs = seeds_last[0].network["gmacs"] / seeds_first[0].network["gmacs"]
            slopes.append(np.log(after / before) / np.log(gmacs))
            lines.append(
                f"- {fixed} {value}, {varied} {first} to {last}: {what} x {count:.3g}, GMACs x {gmacs:.3g}, {metric} "
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
    for (size, patch), group in study.group_by(results, "size", "patch").items():
        points = []
        for times, seeds in sorted(study.group_by(group, "times").items()):
            gmacs, distances = seeds[0].training["gmacs"], [result.distance for result in seeds]
            points.append((gmacs, study.mean(distances), f"{size}/{patch}" + (f" x{times:g}" if times != 1 else "")))
            rows.append(
                (gmacs, f"{size}/{patch}", f"{seeds[0].training['images']:,.0f}", study.mean_and_std(distances))
            )
        series.append(Series(f"{size}/{patch}", points))
    body = [[model, images, f"{gmacs:.3g}", distance] for gmacs, model, images, distance in sorted(rows)]
    title, labels = f"{metric} against training compute", ("training compute, GMACs", f"{metric} (lower is better)")
    return [
        *_equal_compute(results, metric),
        "All runs by training compute, counted as three forward passes per image.",
        "",
        *markdown_table(["model", "images", "training GMACs", f"{metric} ↓"], body),
        *draw(path, title, series, *labels, log="x"),
    ]


def _equal_compute(results: Sequence[Result], metric: str) -> list[str]:
    """Each longer or shorter training next to the standard one of the nearest training compute."""
    groups = study.group_by(results, "size", "patch", "times")
    standard = [seeds for (_, _, times), seeds in groups.items() if times == 1]
    lines = []
    for (size, patch, times), seeds in groups.items():
        if times != 1:
            gmacs = seeds[0].training["gmacs"]
            near = min(standard, key=lambda other: abs(np.log(other[0].training["gmacs"] / gmacs)))
            model = f"{near[0].values['size']}/{near[0].values['patch']}"
            lines.append(
                f"- {size}/{patch}, {times:g} times the images: {metric} {study.mean_distance(seeds):.4g} for {gmacs:.3g} "
                f"training GMACs; {model}: {study.mean_distance(near):.4g} for {near[0].training['gmacs']:.3g}"
            )
    return [*lines, ""]


STUDY = study.Study(
    "Scaling",
    "Does sample quality follow the compute of a forward pass, over sizes and patch sizes, at equal images?",
    runs,
    report,
)
