"""The paper's four block designs at equal training images (DiT, section 3.2, figure 5)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from ditlab.models.blocks import PAPER_BLOCKS
from ditlab.study import study
from ditlab.study.figure import Series, draw
from ditlab.study.preset import StudyPreset
from ditlab.study.study_run import Result, StudyRun

PAPER = {"in-context": 35.24, "cross-attention": 26.14, "adaln": 25.21, "adaln-zero": 19.47}  # FID, XL/2 at 400K steps


def runs(preset: StudyPreset) -> list[StudyRun]:
    """The default network with each block design."""
    models = {block: replace(preset.default_dit, block=block) for block in PAPER_BLOCKS}
    return [preset.run(block, {"block": block}, replace(preset.recipe, model=model)) for block, model in models.items()]


def report(results: Sequence[Result], folder: Path) -> list[str]:
    """The ranking, a table and a figure."""
    metric = results[0].metric
    blocks = study.group_by(results, "block")
    ranking = sorted(blocks, key=lambda block: study.mean_distance(blocks[block]))
    columns: dict[str, study.Column] = {
        **study.columns(metric, "parameters", "GMACs"),
        "each seed": lambda seeds: ", ".join(f"{result.distance:.4g}" for result in seeds),
        "images/s": study.COLUMNS["images/s"],
        "FID, paper (XL/2)": lambda seeds: PAPER[seeds[0].values["block"]],
    }
    points = [Series("", [(x, r.distance, "") for r in blocks[block]], "o") for x, block in enumerate(ranking)]
    ylabel = f"{metric} (lower is better), one point per seed"
    return [
        f"**From best to worst: {', '.join(ranking)}.** In the paper: {', '.join(sorted(PAPER, key=PAPER.__getitem__))}.",
        "",
        *_against("adaln-zero", blocks),
        *study.results_table("block", {block: blocks[block] for block in ranking}, columns),
        *draw(folder / "blocks.png", f"{metric} of each block and seed", points, "", ylabel, xticks=ranking),
    ]


def _against(baseline: str, blocks: dict[str, list[Result]]) -> list[str]:
    """One line per other design: in how many seeds the baseline is better."""
    lines = []
    for block, seeds in blocks.items():
        if block != baseline:
            pairs = [(a.distance, b.distance) for a, b in zip(blocks[baseline], seeds, strict=True)]
            better = sum(a < b for a, b in pairs)
            ratio = study.mean_and_std([b / a for a, b in pairs])
            lines.append(
                f"- {baseline} is better than {block} in {better} of {len(pairs)} seeds; the distance of {block} is {ratio} "
                f"times that of {baseline}"
            )
    return [*lines, ""]


STUDY = study.Study(
    "Conditioning",
    "Which way to feed timestep and label to the blocks is best: in-context tokens, cross-attention or adaptive layer norm?",
    runs,
    report,
    seeds=3,
)
