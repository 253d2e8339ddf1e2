"""Changes published after the DiT paper, each alone and added up, at equal training images (as LightningDiT's table 1)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from ditlab.diffusion import DiffusionConfig
from ditlab.recipes import Recipe
from ditlab.runtime.console import markdown_table
from ditlab.study.figure import Series, draw
from ditlab.study.preset import StudyPreset
from ditlab.study.study import Study, group_by, mean_and_std, mean_distance
from ditlab.study.study_run import Result, StudyRun

BASELINE = "DiT"
CHANGES: dict[str, tuple[str, dict[str, object]]] = {  # ablation step: part of the recipe, its changed fields
    "rectified flow": (
        "diffusion", {"schedule": "rectified-flow", "target": "velocity", "learned_variance": False},
    ),
    "beta2 0.95": ("train", {"beta2": 0.95}),
    "logit-normal t": ("diffusion", {"times": "logit-normal"}),
    "direction loss": ("diffusion", {"direction": True}),
    "SwiGLU": ("model", {"mlp": "swiglu"}),
    "RMS norm": ("model", {"norm": "rms"}),
    "rotary positions": ("model", {"positions": "rotary"}),
    "QK norm": ("model", {"qk_norm": True}),
    "adaLN-LoRA": ("model", {}),  # modulation_rank depends on the width
}  # fmt: skip
STEPS = tuple(CHANGES)
PUBLISHED = {  # FID without guidance, XL/2 at 80 epochs, changes added up (LightningDiT, table 1)
    BASELINE: 19.50, "rectified flow": 17.20, "beta2 0.95": 16.61, "logit-normal t": 13.99, "direction loss": 12.52,
    "SwiGLU": 10.10, "RMS norm": 9.25, "rotary positions": 7.13,
}  # fmt: skip


def apply(recipe: Recipe, step: str, rank: int) -> Recipe:
    """The recipe with one change of CHANGES; ``rank`` is that of adaLN-LoRA."""
    part, fields = CHANGES[step]
    fields = {"modulation_rank": rank} if step == "adaLN-LoRA" else fields
    return replace(recipe, **{part: replace(getattr(recipe, part), **fields)})


def runs(preset: StudyPreset, seeds: int) -> list[StudyRun]:
    """The paper's recipe; changes added one after the other; rectified flow with each change from the third on alone."""
    planned, rank = [], max(2, preset.default_dit.width // 16)
    train = replace(preset.recipe.train, beta2=0.999)
    baseline = replace(preset.recipe, model=preset.default_dit, diffusion=DiffusionConfig(), train=train)
    for seed in range(seeds):
        recipe = baseline
        planned.append(_run(preset, recipe, BASELINE, "together", seed))
        for step in STEPS:
            recipe = apply(recipe, step, rank)
            planned.append(_run(preset, recipe, step, "together", seed))
        flow = apply(baseline, STEPS[0], rank)
        planned += [_run(preset, apply(flow, step, rank), step, "alone", seed) for step in STEPS[2:]]
    return planned


def _run(preset: StudyPreset, recipe: Recipe, step: str, mode: str, seed: int) -> StudyRun:
    file = "the-paper" if step == BASELINE else step.replace(" ", "-")
    return preset.run(f"{mode}-{file}-seed{seed}", {"step": step, "mode": mode, "seed": seed}, recipe)


def report(results: Sequence[Result], folder: Path) -> list[str]:
    """The effect of each change, alone and on top of the changes before it."""
    metric = results[0].metric
    groups = group_by(results, "mode", "step")

    def distances(mode: str, step: str) -> list[float]:
        return [result.distance for result in groups[mode, step]]

    def differences(before: Sequence[float], after: Sequence[float]) -> str:
        return mean_and_std([b - a for a, b in zip(before, after, strict=True)])

    flow, rows, previous = distances("together", STEPS[0]), [], distances("together", BASELINE)
    for step in (BASELINE, *STEPS):
        together = distances("together", step)
        # The second step follows rectified flow directly, so that added up and alone are one run.
        alone = distances("alone", step) if ("alone", step) in groups else together if step == STEPS[1] else []
        first = groups["together", step][0]
        rows.append(
            [
                step if step == BASELINE else f"+ {step}",
                mean_and_std(together),
                "" if step == BASELINE else differences(previous, together),
                mean_and_std(alone) if alone else "",
                differences(flow, alone) if alone else "",
                f"{first.network['parameters']:,.0f}",
                f"{first.network['gmacs']:.4g}",
                f"{first.training['images_per_second']:,.0f}",
                PUBLISHED.get(step, ""),
            ]
        )
        previous = together
    header = ["", f"{metric} ↓", "Δ", "alone ↓", "Δ alone", "parameters", "GMACs", "images/s", "FID, LightningDiT"]
    lines = [
        f"Each row adds one change to the row above; Δ is the difference in {metric}. *Alone*: rectified flow with this change "
        "only; *Δ alone* is the difference from rectified flow. *FID, LightningDiT*: XL/2 on ImageNet 256, changes added up.",
        "",
        *markdown_table(header, rows),
    ]

    def ticks(axes) -> None:
        axes.set_xticks(range(len(STEPS) + 1), (BASELINE, *STEPS), rotation=35, ha="right")

    together = [mean_distance(groups["together", step]) for step in (BASELINE, *STEPS)]
    alone = [mean_distance(groups["alone", step]) for step in STEPS[2:]]
    series = [
        Series("changes added up", list(range(len(together))), together),
        Series("rectified flow and this change", list(range(3, len(together))), alone, line=False, marker="s"),
    ]
    draw(folder / "ablation.png", series, "", f"{metric} (lower is better)", also=ticks)
    return [*lines, f"![{metric} of each ablation step](ablation.png)", ""]


STUDY = Study(
    "Ablation of later changes",
    "What does each change published after the DiT paper contribute at this scale, alone and added up, at equal images?",
    runs,
    report,
)
