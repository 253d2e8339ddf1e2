"""DiT against the U-Net at equal multiply-accumulates and equal images: quality and measured speed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from ditlab.data import open_data
from ditlab.models import DiTConfig, NetworkSpec, UNetConfig, cost, matched
from ditlab.recipes import network_spec
from ditlab.study import study
from ditlab.study.figure import Series, draw
from ditlab.study.preset import StudyPreset
from ditlab.study.study_run import Result, StudyRun


def runs(preset: StudyPreset) -> list[StudyRun]:
    """A DiT of each size at the default patch size, and the U-Net of the nearest multiply-accumulates."""
    dataset, planned = open_data(preset.recipe.data), []
    spec = network_spec(preset.recipe, dataset.shape, len(dataset.names))
    for size in preset.sizes:
        dit = preset.dit(size, preset.patch)
        for network, model in (("DiT", dit), ("U-Net", _nearest(dit, spec))):
            recipe = replace(preset.recipe, model=model)
            planned.append(preset.run(f"{network}-{size}", {"network": network, "size": size}, recipe))
    return planned


def _nearest(dit: DiTConfig, spec: NetworkSpec) -> UNetConfig:
    """The U-Net of two or three levels whose multiply-accumulates are nearest to the DiT's; widths are multiples of 4."""
    target = cost(dit, spec).gmacs
    bases = UNetConfig(), UNetConfig(multipliers=(1.0, 2.0), attention=(2,))
    candidates = [matched(dit, spec, base) for base in bases]
    return min(candidates, key=lambda config: abs(cost(config, spec).gmacs / target - 1))


def report(results: Sequence[Result], folder: Path) -> list[str]:
    """One row per network, the ratios by size, and a figure."""
    metric, ratios, series = results[0].metric, [], []
    groups = study.group_by(results, "network", "size")
    for (network, size), seeds in groups.items():
        if network == "DiT":
            pairs = list(zip(seeds, groups["U-Net", size], strict=True))
            distance = study.mean_and_std([unet.distance / dit.distance for dit, unet in pairs])
            speeds = [dit.training["images_per_second"] / unet.training["images_per_second"] for dit, unet in pairs]
            ratios.append(
                f"- {size}: {metric} of the U-Net is {distance} times the DiT's; training images/s of the DiT are "
                f"{study.mean_and_std(speeds)} times the U-Net's"
            )
    for network, group in study.group_by(results, "network").items():
        by_size = study.group_by(group, "size").items()
        points = [(seeds[0].network["gmacs"], study.mean_distance(seeds), size) for size, seeds in by_size]
        series.append(Series(network, points))
    columns = study.columns(metric, "parameters", "GMACs")
    columns["images/s, training"] = study.COLUMNS["images/s"]
    title, labels = f"{metric} of both networks", ("GMACs of a forward pass", f"{metric} (lower is better)")
    return [
        *ratios,
        "",
        *study.results_table("network", {", ".join(key): seeds for key, seeds in groups.items()}, columns),
        *draw(folder / "unet.png", title, series, *labels, log="x"),
    ]


STUDY = study.Study(
    "DiT against the U-Net",
    "At equal multiply-accumulates and equal images, which network makes better samples, and which trains faster?",
    runs,
    report,
)
