"""Which block design is best at equal images? The paper's four (DiT, section 3.2, figure 5)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, get_type_hints

import numpy as np

from ditlab.models import DiTConfig
from ditlab.runtime.console import markdown_table
from ditlab.study.figure import Series, draw
from ditlab.study.preset import StudyPreset
from ditlab.study.study import Study, cell, expense, grouped, mean_and_spread, quality, quality_header
from ditlab.study.study_run import Result, StudyRun

BLOCKS = get_type_hints(DiTConfig)["block"].__args__  # adaln-zero first
PAPER = {"in-context": 35.24, "cross-attention": 26.14, "adaln": 25.21, "adaln-zero": 19.47}  # FID, XL/2 at 400K steps


def cells(form: StudyPreset, seeds: int) -> list[StudyRun]:
    """The usual network with each block, over seeds."""
    made = []
    for seed in range(seeds):
        for block in BLOCKS:
            recipe = replace(form.recipe, model=replace(form.usual, block=block))
            made.append(cell(form, f"{block}-seed{seed}", {"block": block, "seed": seed}, recipe))
    return made


def report(results: Sequence[Result], folder: Path) -> list[str]:
    """Who comes first, a table, and a figure."""
    metric = results[0].metric
    blocks = {block: same for (block,), same in grouped(results, "block").items()}
    means = {block: float(np.mean([result.distance for result in same])) for block, same in blocks.items()}
    order = sorted(means, key=lambda block: means[block])
    lines = [
        f"**From best to worst: {', '.join(order)}.** In the paper: {', '.join(sorted(PAPER, key=lambda b: PAPER[b]))}."
    ]
    lines += ["", *_against("adaln-zero", blocks)]
    rows = [
        [
            block,
            *expense(same[0]),
            *quality(same),
            ", ".join(f"{result.distance:.4g}" for result in same),
            f"{same[0].training['images_per_second']:,.0f}",
            PAPER[block],
        ]
        for block, same in ((block, blocks[block]) for block in order)
    ]
    header = ["block", "parameters", "GMACs", *quality_header(metric), "each seed", "images/s", "FID, paper (XL/2)"]
    lines += markdown_table(header, rows)
    series = [
        Series("", [place] * len(blocks[block]), [result.distance for result in blocks[block]], line=False)
        for place, block in enumerate(order)
    ]

    def names(axes: Any) -> None:
        axes.set_xticks(range(len(order)), order)

    draw(folder / "blocks.png", series, "", f"{metric} (lower is better), each seed a point", also=names)
    return [*lines, f"![{metric} of each block and seed](blocks.png)", ""]


def _against(first: str, blocks: dict[str, list[Result]]) -> list[str]:
    """In how many seeds one design is ahead of each other one."""
    lines = []
    for block, same in blocks.items():
        if block != first:
            pairs = [(a.distance, b.distance) for a, b in zip(blocks[first], same, strict=True)]
            ahead = sum(a < b for a, b in pairs)
            ratio = mean_and_spread([b / a for a, b in pairs])
            lines.append(
                f"- {first} ahead of {block} in {ahead} of {len(pairs)} seeds; {block} has {ratio} times its distance"
            )
    return [*lines, ""]


STUDY = Study(
    "Conditioning",
    "How should timestep and label reach the blocks: as tokens, by cross-attention, or by adaptive norms?",
    cells,
    report,
    seeds=3,
)
