"""The paper's four block designs at equal training images (DiT, section 3.2, figure 5)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, get_type_hints

from ditlab.models import DiTConfig
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

BLOCKS = get_type_hints(DiTConfig)["block"].__args__  # adaln-zero first
PAPER = {"in-context": 35.24, "cross-attention": 26.14, "adaln": 25.21, "adaln-zero": 19.47}  # FID, XL/2 at 400K steps


def runs(preset: StudyPreset, seeds: int) -> list[StudyRun]:
    """The default network with each block design."""
    planned = []
    for seed in range(seeds):
        for block in BLOCKS:
            recipe = replace(preset.recipe, model=replace(preset.default_dit, block=block))
            planned.append(preset.run(f"{block}-seed{seed}", {"block": block, "seed": seed}, recipe))
    return planned


def report(results: Sequence[Result], folder: Path) -> list[str]:
    """The ranking, a table and a figure."""
    metric = results[0].metric
    blocks = {block: seeds for (block,), seeds in group_by(results, "block").items()}
    ranking = sorted(blocks, key=lambda block: mean_distance(blocks[block]))
    paper = sorted(PAPER, key=lambda block: PAPER[block])
    rows = [
        [
            block,
            *cost_columns(blocks[block][0]),
            *metric_columns(blocks[block]),
            ", ".join(f"{result.distance:.4g}" for result in blocks[block]),
            f"{blocks[block][0].training['images_per_second']:,.0f}",
            PAPER[block],
        ]
        for block in ranking
    ]
    header = ["block", "parameters", "GMACs", *metric_header(metric), "each seed", "images/s", "FID, paper (XL/2)"]
    series = [
        Series("", [position] * len(blocks[block]), [result.distance for result in blocks[block]], line=False)
        for position, block in enumerate(ranking)
    ]

    def ticks(axes: Any) -> None:
        axes.set_xticks(range(len(ranking)), ranking)

    draw(folder / "blocks.png", series, "", f"{metric} (lower is better), one point per seed", also=ticks)
    return [
        f"**From best to worst: {', '.join(ranking)}.** In the paper: {', '.join(paper)}.",
        "",
        *_against("adaln-zero", blocks),
        *markdown_table(header, rows),
        f"![{metric} of each block and seed](blocks.png)",
        "",
    ]


def _against(baseline: str, blocks: dict[str, list[Result]]) -> list[str]:
    """One line per other design: in how many seeds the baseline is better."""
    lines = []
    for block, seeds in blocks.items():
        if block != baseline:
            pairs = [(a.distance, b.distance) for a, b in zip(blocks[baseline], seeds, strict=True)]
            better = sum(a < b for a, b in pairs)
            ratio = mean_and_std([b / a for a, b in pairs])
            lines.append(
                f"- {baseline} is better than {block} in {better} of {len(pairs)} seeds; the distance of {block} is {ratio} "
                f"times that of {baseline}"
            )
    return [*lines, ""]


STUDY = Study(
    "Conditioning",
    "Which way to feed timestep and label to the blocks is best: in-context tokens, cross-attention or adaptive layer norm?",
    runs,
    report,
    seeds=3,
)
