"""DiT against the U-Net at equal multiply-accumulates and equal images, measured speed beside."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path

from ditlab.data import open_data
from ditlab.models import DiTConfig, NetworkInput, UNetConfig, cost, matched
from ditlab.runtime.console import markdown_table
from ditlab.study.figure import Series, draw
from ditlab.study.preset import StudyPreset
from ditlab.study.study import Study, cell, expense, grouped, mean_and_spread, quality, quality_header
from ditlab.study.study_run import Result, StudyRun


def cells(form: StudyPreset, seeds: int) -> list[StudyRun]:
    """Each size at the usual patch, and the U-Net whose multiply-accumulates come nearest."""
    dataset = open_data(form.recipe.data)
    diffusion = form.recipe.diffusion
    shape = NetworkInput(
        *dataset.shape, len(dataset.names), diffusion.learned_variance, not dataset.names or diffusion.label_dropout > 0
    )
    made = []
    for seed in range(seeds):
        for size in form.sizes:
            dit = form.dit(size, form.patch)
            for name, model in (("DiT", dit), ("U-Net", _nearest(dit, shape))):
                values = {"network": name, "size": size, "seed": seed}
                made.append(cell(form, f"{name}-{size}-seed{seed}", values, replace(form.recipe, model=model)))
    return made


@cache  # it counts dozens of networks
def _nearest(dit: DiTConfig, shape: NetworkInput) -> UNetConfig:
    """The small U-Net, of two levels or three, whose multiply-accumulates come nearest; widths go by fours."""
    wanted = cost(dit, shape).gmacs
    tried = [matched(dit, shape, like) for like in (UNetConfig(), UNetConfig(multipliers=(1.0, 2.0), attention=(2,)))]
    return min(tried, key=lambda config: abs(cost(config, shape).gmacs / wanted - 1))


def report(results: Sequence[Result], folder: Path) -> list[str]:
    """A row a network, the ratio a size, and a figure."""
    metric, rows, lines = results[0].metric, [], []
    by_network = grouped(results, "network", "size")
    for (network, size), same in by_network.items():
        first = same[0]
        rows.append(
            [
                f"{network}, {size}",
                *expense(first),
                *quality(same),
                f"{first.training['images_per_second']:,.0f}",
            ]
        )
    for (network, size), same in by_network.items():
        if network == "DiT":
            pairs = list(zip(same, by_network["U-Net", size], strict=True))
            distance = mean_and_spread([unet.distance / dit.distance for dit, unet in pairs])
            speeds = [dit.training["images_per_second"] / unet.training["images_per_second"] for dit, unet in pairs]
            lines.append(
                f"- {size}: the U-Net has {distance} times the DiT's {metric}; the DiT's images/s in training "
                f"are {mean_and_spread(speeds)} times the U-Net's"
            )
    header = ["network", "parameters", "GMACs", *quality_header(metric), "images/s, training"]
    series = []
    for (network,), same in grouped(results, "network").items():
        by_size = {size: seeds for (size,), seeds in grouped(same, "size").items()}
        x = [seeds[0].network["gmacs"] for seeds in by_size.values()]
        y = [sum(result.distance for result in seeds) / len(seeds) for seeds in by_size.values()]
        series.append(Series(network, x, y, list(by_size)))
    draw(folder / "unet.png", series, "GMACs of a forward pass of a sample", f"{metric} (lower is better)", logx=True)
    return [*lines, "", *markdown_table(header, rows), f"![{metric} of both networks](unet.png)", ""]


STUDY = Study(
    "DiT against the U-Net",
    "At equal multiply-accumulates and equal images, which network makes the better samples, and which is faster?",
    cells,
    report,
)
