"""Changes published after the DiT paper, each alone and added up, at equal training images (as LightningDiT's table 1)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

from ditlab.diffusion import DiffusionConfig
from ditlab.recipes import Recipe
from ditlab.runtime.console import markdown_table
from ditlab.study import study
from ditlab.study.figure import Series, draw
from ditlab.study.preset import StudyPreset
from ditlab.study.study_run import Result, StudyRun

BASELINE = "DiT"
CHANGES: dict[str, tuple[str, dict[str, object]]] = {  # ablation step: part of the recipe, its changed fields
    "rectified flow": ("diffusion", {"schedule": "rectified-flow", "target": "velocity", "learned_variance": False}),
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


def runs(preset: StudyPreset) -> list[StudyRun]:
    """The paper's recipe; changes added one after the other; rectified flow with each change from the third on alone."""
    rank = max(2, preset.default_dit.width // 16)
    train = replace(preset.recipe.train, beta2=0.999)
    recipe = baseline = replace(preset.recipe, model=preset.default_dit, diffusion=DiffusionConfig(), train=train)
    planned = [preset.run("together-the-paper", {"step": BASELINE, "mode": "together"}, baseline)]
    for step in STEPS:
        recipe = apply(recipe, step, rank)
        planned.append(_run(preset, recipe, step, "together"))
    flow = apply(baseline, STEPS[0], rank)
    return planned + [_run(preset, apply(flow, step, rank), step, "alone") for step in STEPS[2:]]


def _run(preset: StudyPreset, recipe: Recipe, step: str, mode: str) -> StudyRun:
    return preset.run(f"{mode}-{step.replace(' ', '-')}", {"step": step, "mode": mode}, recipe)


def _differences(before: Sequence[float], after: Sequence[float]) -> str:
    return study.mean_and_std([b - a for a, b in zip(before, after, strict=True)])


def report(results: Sequence[Result], folder: Path) -> list[str]:
    """The effect of each change, alone and on top of the changes before it."""
    metric, steps, rows = results[0].metric, (BASELINE, *STEPS), []
    modes = {mode: study.group_by(group, "step") for mode, group in study.group_by(results, "mode").items()}
    together, alone = ({s: [r.distance for r in modes[mode][s]] for s in modes[mode]} for mode in ("together", "alone"))
    # The second step follows rectified flow directly, so that added up and alone are one run.
    for before, step in pairwise(("", *steps)):
        only = together[step] if step == STEPS[1] else alone.get(step)
        seeds = modes["together"][step]
        gain = _differences(together[before], together[step]) if before else ""
        by_itself = [study.mean_and_std(only), _differences(together[STEPS[0]], only)] if only else ["", ""]
        parameters, speed = (study.COLUMNS[name](seeds) for name in ("parameters", "images/s"))
        costs = [parameters, f"{seeds[0].network['gmacs']:.4g}", speed]
        name, published = f"+ {step}" if before else step, PUBLISHED.get(step, "")
        rows.append([name, study.mean_and_std(together[step]), gain, *by_itself, *costs, published])
    header = ["", f"{metric} ↓", "Δ", "alone ↓", "Δ alone", "parameters", "GMACs", "images/s", "FID, LightningDiT"]
    added_up = [(x, study.mean(together[step]), "") for x, step in enumerate(steps)]
    single = [(x, study.mean(alone[step]), "") for x, step in enumerate(steps) if step in alone]
    series = [Series("changes added up", added_up), Series("rectified flow and this change", single, "s")]
    title, ylabel = f"{metric} of each ablation step", f"{metric} (lower is better)"
    return [
        f"Each row adds one change to the row above; Δ is the difference in {metric}. *Alone*: rectified flow with this change "
        "only; *Δ alone* is the difference from rectified flow. *FID, LightningDiT*: XL/2 on ImageNet 256, changes added up.",
        "",
        *markdown_table(header, rows),
        *draw(folder / "ablation.png", title, series, "", ylabel, xticks=steps),
    ]


STUDY = study.Study(
    "Ablation of later changes",
    "What does each change published after the DiT paper contribute at this scale, alone and added up, at equal images?",
    runs,
    report,
)
