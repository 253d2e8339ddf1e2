"""What came after the paper, one by one and together, at equal images (facts of LightningDiT's table 1 beside)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from ditlab.diffusion import DiffusionConfig
from ditlab.recipes import Recipe
from ditlab.runtime.console import markdown_table
from ditlab.study.figure import Series, draw
from ditlab.study.preset import StudyPreset
from ditlab.study.study import Study, cell, grouped, mean_and_spread
from ditlab.study.study_run import Result, StudyRun

RUNGS = (
    "rectified flow", "beta2 0.95", "logit-normal t", "direction loss", "SwiGLU", "RMS norm", "rotary positions", "QK norm",
    "adaLN-LoRA",
)  # fmt: skip
PUBLISHED = {  # unguided FID of XL/2 at 80 epochs, each with all above it (LightningDiT, table 1)
    "the paper": 19.50, "rectified flow": 17.20, "beta2 0.95": 16.61, "logit-normal t": 13.99, "direction loss": 12.52,
    "SwiGLU": 10.10, "RMS norm": 9.25, "rotary positions": 7.13,
}  # fmt: skip


def climb(recipe: Recipe, rung: str, rank: int) -> Recipe:
    """A recipe with one change more.

    Args:
        recipe: to be changed.
        rung: one of RUNGS.
        rank: of adaLN-LoRA's corrections.
    """
    if rung == "rectified flow":
        flow = replace(recipe.diffusion, schedule="rectified-flow", target="velocity", learned_variance=False)
        return replace(recipe, diffusion=flow)
    if rung == "beta2 0.95":
        return replace(recipe, train=replace(recipe.train, beta2=0.95))
    if rung == "logit-normal t":
        return replace(recipe, diffusion=replace(recipe.diffusion, times="logit-normal"))
    if rung == "direction loss":
        return replace(recipe, diffusion=replace(recipe.diffusion, direction=True))
    changes: dict[str, dict[str, object]] = {
        "SwiGLU": {"mlp": "swiglu"},
        "RMS norm": {"norm": "rms"},
        "rotary positions": {"positions": "rotary"},
        "QK norm": {"qk_norm": True},
        "adaLN-LoRA": {"modulation_rank": rank},
    }
    return replace(recipe, model=replace(recipe.model, **changes[rung]))  # type: ignore[arg-type]


def cells(form: StudyPreset, seeds: int) -> list[StudyRun]:
    """The paper's recipe; with all changes up to each rung; and rectified flow with each rung alone from the third on."""
    made, rank = [], max(2, form.usual.width // 16)
    paper = replace(
        form.recipe, model=form.usual, diffusion=DiffusionConfig(), train=replace(form.recipe.train, beta2=0.999)
    )
    for seed in range(seeds):
        recipe = paper
        made.append(_cell(form, recipe, "the paper", "together", seed))
        for rung in RUNGS:
            recipe = climb(recipe, rung, rank)
            made.append(_cell(form, recipe, rung, "together", seed))
        flow = climb(paper, RUNGS[0], rank)
        made += [_cell(form, climb(flow, rung, rank), rung, "alone", seed) for rung in RUNGS[2:]]
    return made


def _cell(form: StudyPreset, recipe: Recipe, rung: str, how: str, seed: int) -> StudyRun:
    return cell(form, f"{how}-{rung.replace(' ', '-')}-seed{seed}", {"rung": rung, "how": how, "seed": seed}, recipe)


def report(results: Sequence[Result], folder: Path) -> list[str]:
    """What each rung gives, on its own and on top of those before it."""
    metric = results[0].metric
    found = grouped(results, "how", "rung")

    def distances(how: str, rung: str) -> list[float]:
        return [result.distance for result in found[how, rung]]

    flow, rows, before = distances("together", RUNGS[0]), [], distances("together", "the paper")
    for rung in ("the paper", *RUNGS):
        here = distances("together", rung)
        alone = distances("alone", rung) if ("alone", rung) in found else here if rung == RUNGS[1] else []
        first = found["together", rung][0]
        rows.append(
            [
                rung if rung == "the paper" else f"+ {rung}",
                mean_and_spread(here),
                "" if rung == "the paper" else mean_and_spread([b - a for a, b in zip(before, here, strict=True)]),
                mean_and_spread(alone) if alone else "",
                mean_and_spread([b - a for a, b in zip(flow, alone, strict=True)]) if alone else "",
                f"{first.network['parameters']:,.0f}",
                f"{first.network['gmacs']:.4g}",
                f"{first.training['images_per_second']:,.0f}",
                PUBLISHED.get(rung, ""),
            ]
        )
        before = here
    lines = [
        "The second and third columns: with all changes above, and what this one changed. The fourth and fifth: rectified flow "
        "with this change only, and what it changed. The last: LightningDiT's, XL/2 on ImageNet.",
        "",
    ]
    header = [
        "",
        f"{metric} ↓, together",
        "change",
        "alone",
        "change",
        "parameters",
        "GMACs",
        "images/s",
        "FID published",
    ]
    lines += markdown_table(header, rows)
    together = [sum(distances("together", rung)) / len(flow) for rung in ("the paper", *RUNGS)]
    alone = [sum(distances("alone", rung)) / len(flow) for rung in RUNGS[2:]]

    def names(axes) -> None:
        axes.set_xticks(range(len(RUNGS) + 1), ("the paper", *RUNGS), rotation=35, ha="right")

    series = [
        Series("with all before it", list(range(len(together))), together),
        Series("rectified flow and this alone", list(range(3, len(together))), alone, line=False, marker="s"),
    ]
    draw(folder / "ladder.png", series, "", f"{metric} (lower is better)", also=names)
    return [*lines, f"![{metric} up the ladder](ladder.png)", ""]


STUDY = Study(
    "The recipe ladder",
    "What do the changes that came after the paper give at this scale, one by one and together, at equal images?",
    cells,
    report,
)
