"""DiT against the U-Net at equal multiply-accumulates and equal images: quality and measured speed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path

from ditlab.data import open_data
from ditlab.models import DiTConfig, LatentSpec, NetworkSpec, UNetConfig, cost, labelled, matched
from ditlab.runtime.console import markdown_table
from ditlab.study.figure import Series, draw
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


def runs(preset: StudyPreset, seeds: int) -> list[StudyRun]:
    """A DiT of each size at the default patch size, and the U-Net of the nearest multiply-accumulates."""
    dataset = open_data(preset.recipe.data)
    diffusion = preset.recipe.diffusion
    channels, *size = dataset.shape
    shape = labelled(
        LatentSpec(channels, tuple(size)),
        len(dataset.names),
        null=diffusion.condition_dropout > 0,
        learned_variance=diffusion.learned_variance,
    )
    planned = []
    for seed in range(seeds):
        for size in preset.sizes:
            dit = preset.dit(size, preset.patch)
            for network, model in (("DiT", dit), ("U-Net", _nearest(dit, shape))):
                values = {"network": network, "size": size, "seed": seed}
                recipe = replace(preset.recipe, model=model)
                planned.append(preset.run(f"{network}-{size}-seed{seed}", values, recipe))
    return planned


@cache  # counts dozens of networks
def _nearest(dit: DiTConfig, shape: NetworkSpec) -> UNetConfig:
    """The U-Net of two or three levels whose multiply-accumulates are nearest to the DiT's; widths are multiples of 4."""
    target = cost(dit, shape).gmacs
    candidates = [
        matched(dit, shape, base) for base in (UNetConfig(), UNetConfig(multipliers=(1.0, 2.0), attention=(2,)))
    ]
    return min(candidates, key=lambda config: abs(cost(config, shape).gmacs / target - 1))


def report(results: Sequence[Result], folder: Path) -> list[str]:
    """One row per network, the ratios by size, and a figure."""
    metric, rows, ratios = results[0].metric, [], []
    groups = group_by(results, "network", "size")
    for (network, size), seeds in groups.items():
        speed = f"{seeds[0].training['images_per_second']:,.0f}"
        rows.append([f"{network}, {size}", *cost_columns(seeds[0]), *metric_columns(seeds), speed])
        if network == "DiT":
            pairs = list(zip(seeds, groups["U-Net", size], strict=True))
            distance = mean_and_std([unet.distance / dit.distance for dit, unet in pairs])
            speeds = [dit.training["images_per_second"] / unet.training["images_per_second"] for dit, unet in pairs]
            ratios.append(
                f"- {size}: {metric} of the U-Net is {distance} times the DiT's; training images/s of the DiT are "
                f"{mean_and_std(speeds)} times the U-Net's"
            )
    series = []
    for (network,), group in group_by(results, "network").items():
        by_size = {size: seeds for (size,), seeds in group_by(group, "size").items()}
        x = [seeds[0].network["gmacs"] for seeds in by_size.values()]
        series.append(Series(network, x, [mean_distance(seeds) for seeds in by_size.values()], list(by_size)))
    draw(folder / "unet.png", series, "GMACs of a forward pass", f"{metric} (lower is better)", logx=True)
    header = ["network", "parameters", "GMACs", *metric_header(metric), "images/s, training"]
    return [*ratios, "", *markdown_table(header, rows), f"![{metric} of both networks](unet.png)", ""]


STUDY = Study(
    "DiT against the U-Net",
    "At equal multiply-accumulates and equal images, which network makes better samples, and which trains faster?",
    runs,
    report,
)
