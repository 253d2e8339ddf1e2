"""Text conditioning on rendered scenes: ways into the network, encoders, compute, guidance, dropped and short captions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from ditlab.encoders import TextEncoderConfig
from ditlab.evaluate.scenes import tasks
from ditlab.models import DiTConfig
from ditlab.recipes import Recipe
from ditlab.runtime.console import markdown_table
from ditlab.study import study
from ditlab.study.figure import Series, draw
from ditlab.study.fit import fit
from ditlab.study.preset import StudyPreset
from ditlab.study.study_run import Result, StudyRun, gmacs

WAYS = {  # block designs by the way the text takes
    "pooled": "adaln-zero", "cross-attention": "adaln-cross-attention", "in-context": "adaln-in-context", "joint": "joint",
}  # fmt: skip
WAY = "in-context"  # of the runs that do not vary it
ENCODERS = {
    "tokens": TextEncoderConfig("tokens"), "random tokens": TextEncoderConfig("tokens", frozen=True),
    "minilm": TextEncoderConfig("minilm"),
}  # fmt: skip
RATES = (0.5, 1.0, 2.0)  # of the preset's learning rate, all tried for every arm
DROPOUTS = (0.02, 0.1, 0.3)  # shares of captions
DROPOUT = 0.1
CAPTIONS = ("full", "short")
SCALES = (1.0, 2.0, 3.0, 5.0, 8.0)  # of guidance
SCALE = 3.0
ARM = ("way", "encoder", "size")  # what has a learning rate of its own
VARIED = (*ARM, "budget", "dropout", "captions", "scale")


def search(preset: StudyPreset) -> list[StudyRun]:
    """Every arm with its own weights to learn, at each of ``RATES``: the ways, the encoders, the sizes."""
    settings: list[dict[str, Any]] = [{"way": way} for way in WAYS]
    settings += [{"encoder": encoder} for encoder in ENCODERS if encoder != "tokens"]
    settings += [{"size": size} for size in preset.sizes if size != preset.size]
    return [_run(preset, lr=times * preset.recipe.train.lr, **each) for each in settings for times in RATES]


def choose(results: Sequence[Result]) -> dict[str, float]:
    """The learning rate of each arm: that of the least held-out loss."""
    arms = study.group_by(results, *ARM)
    return {_arm(*arm): min(tried, key=_held_out_loss).values["lr"] for arm, tried in arms.items()}


def _held_out_loss(result: Result) -> float:
    return result.number("held-out loss")


def runs(preset: StudyPreset) -> list[StudyRun]:
    """All settings, each varied alone, at the learning rates of ``choose``; the ways also at equal compute."""
    settings: list[dict[str, Any]] = [{"way": way} for way in WAYS]
    settings += [{"way": way, "budget": "compute"} for way in WAYS if way != WAY]
    settings += [{"encoder": encoder} for encoder in ENCODERS] + [{"size": size} for size in preset.sizes]
    settings += [{"dropout": dropout} for dropout in DROPOUTS] + [{"captions": each} for each in CAPTIONS]
    settings += [{"scale": scale} for scale in SCALES]
    return [_run(preset, **each) for each in settings]


def _arm(way: str, encoder: str, size: str) -> str:
    return f"{way}-{encoder.replace(' ', '-')}-{size}"


def _run(
    preset: StudyPreset, lr: float = 0, *, way: str = WAY, encoder: str = "tokens", size: str = "",
    budget: str = "images", dropout: float = DROPOUT, captions: str = CAPTIONS[0], scale: float = SCALE,
) -> StudyRun:  # fmt: skip
    size = size or preset.size
    arm = _arm(way, encoder, size)
    lr = lr or preset.rates[arm]
    text, base = ENCODERS[encoder], preset.recipe
    recipe = replace(
        base, model=_with_block(preset.dit(size, preset.patch), way),
        text=replace(text, max_tokens=base.text.max_tokens),
        data=replace(base.data, caption="" if captions == CAPTIONS[0] else captions),
        diffusion=replace(base.diffusion, condition_dropout=dropout),
        train=replace(base.train, lr=lr),
    )  # fmt: skip
    if budget == "compute":
        recipe = _of_equal_compute(recipe, preset.dit(size, preset.patch))
    training = "-".join([
        arm, f"lr{lr:g}", *(["compute"] if budget == "compute" else []),
        *([f"dropout{dropout:g}"] if dropout != DROPOUT else []), *([captions] if captions != CAPTIONS[0] else []),
    ])  # fmt: skip
    sample = replace(base.sample, guidance=replace(base.sample.guidance, scale=scale))
    values = dict(zip(VARIED, (way, encoder, size, budget, dropout, captions, scale), strict=True))
    name = training if scale == SCALE else f"{training}-guidance{scale:g}"
    return preset.run(name, {**values, "lr": lr}, recipe, sample, training)


def _with_block(model: DiTConfig, way: str) -> DiTConfig:
    return replace(model, block=WAYS[way])


def _of_equal_compute(recipe: Recipe, model: DiTConfig) -> Recipe:
    """The recipe with as many images as cost what the network of ``WAY`` costs at the recipe's number."""
    reference = replace(recipe, model=_with_block(model, WAY))
    images = round(recipe.train.images * gmacs(reference) / gmacs(recipe))
    images -= images % recipe.train.batch
    return replace(recipe, train=replace(recipe.train, images=images, samples=images))


def report(results: Sequence[Result], folder: Path) -> list[str]:
    """A section for each question."""
    chosen = _at_chosen_rates(results)
    default = _default(results)

    def vary(name: str, **values: object) -> dict[str, list[Result]]:
        """The seeds of each value of one setting, all others at their defaults or ``values``."""
        fixed = {**default, **values}
        kept = [r for r in chosen if all(r.values[key] == value for key, value in fixed.items() if key != name)]
        return {f"{v:g}" if isinstance(v, float) else v: seeds for v, seeds in study.group_by(kept, name).items()}

    ways, equal = vary("way"), vary("way", budget="compute")
    return [
        "Accuracy is the mean over GenEval's six tasks, seen combinations, in percent; *attribution* and *position* are the "
        "two tasks of binding. *Other caption* is by how much the held-out loss rises under another image's caption.",
        "",
        "## Ways into the network",
        "",
        f"**At equal images: {_ranking(ways)}. At equal training compute: {_ranking({WAY: ways[WAY], **equal})}.** Published "
        "results disagree: in-context equals two streams and cross-attention with fewer parameters (DiT-Air, 2025); "
        "cross-attention gains more per compute than in-context (Liang et al. 2024).",
        "",
        *_table("way, equal images", ways),
        *_table("way, equal compute", {WAY: ways[WAY], **equal}),
        "## Encoders",
        "",
        *_table("encoder", vary("encoder")),
        "## Compute",
        "",
        *_compute(vary("size"), folder / "compute.png"),
        "## Guidance",
        "",
        *_guidance(vary("scale"), folder / "guidance.png"),
        "## Dropped captions",
        "",
        *_table("captions dropped", vary("dropout")),
        "## Short captions",
        "",
        "Short captions leave out each colour, size, place and relation with probability one half. The prompts are full.",
        "",
        *_table("captions", vary("captions")),
        "## Learning rates",
        "",
        "Each arm was trained at each rate with the first seed; the rate of the least held-out loss, in bold, is used above.",
        "",
        *_rates(results),
    ]


def _default(results: Sequence[Result]) -> dict[str, object]:
    """The setting of runs that vary nothing."""
    size = next(result.values["size"] for result in results if result.values["way"] != WAY)
    return dict(zip(VARIED, (WAY, "tokens", size, "images", DROPOUT, CAPTIONS[0], SCALE), strict=True))


def _searched(results: Sequence[Result]) -> list[Result]:
    """The runs of the first seed that vary nothing but the arm."""
    default, first = _default(results), results[0].values["seed"]
    fixed = {name: default[name] for name in VARIED if name not in ARM} | {"seed": first}
    return [result for result in results if all(result.values[name] == value for name, value in fixed.items())]


def _at_chosen_rates(results: Sequence[Result]) -> list[Result]:
    rates = choose(_searched(results))
    return [r for r in results if r.values["lr"] == rates[_arm(*(r.values[name] for name in ARM))]]


def _ranking(settings: dict[str, list[Result]]) -> str:
    by_accuracy = sorted(settings, key=lambda name: -study.mean_distance(settings[name]))
    return ", ".join(f"{name} {study.mean_distance(settings[name]):.1f}" for name in by_accuracy)


_MEASURES: dict[str, study.Column] = {
    "accuracy, % ↑": study.over_seeds("accuracy"),
    "held out, % ↑": study.over_seeds("held out"),
    "attribution, % ↑": study.over_seeds("colour attribution"),
    "position, % ↑": study.over_seeds("position"),
    "held-out loss ↓": study.over_seeds("held-out loss"),
    "other caption ↑": study.over_seeds("other caption"),
}


def _table(first: str, settings: dict[str, list[Result]]) -> list[str]:
    columns = {name: study.COLUMNS[name] for name in ("parameters", "GMACs")}
    columns["images"] = lambda seeds: f"{seeds[0].training['images']:,.0f}"
    columns["rate"] = lambda seeds: f"{seeds[0].values['lr']:g}"
    return study.results_table(first, settings, {**columns, **_MEASURES})


def _compute(sizes: dict[str, list[Result]], path: Path) -> list[str]:
    """Whether each task follows compute: a fit over sizes and seeds, a table and a figure."""
    runs = [result for seeds in sizes.values() for result in seeds]
    logs = np.log10([result.network["gmacs"] for result in runs])
    slopes, series = [], []
    for task in tasks():
        slope = fit(logs, [result.number(task) for result in runs]).slope
        slopes.append(f"{task} {slope:+.1f}")
        points = [
            (seeds[0].network["gmacs"], study.mean([r.number(task) for r in seeds]), size)
            for size, seeds in sizes.items()
        ]
        series.append(Series(task, sorted(points)))
    return [
        f"Percent gained by ten times the GMACs, by a linear fit over sizes: {', '.join(slopes)}.",
        "",
        *_table("size", sizes),
        *draw(path, "accuracy against compute", series, "GMACs of a forward pass", "images that are right, %", log="x"),
    ]


def _guidance(scales: dict[str, list[Result]], path: Path) -> list[str]:
    """Accuracy and variety, a table and a figure."""
    columns = {**_MEASURES, "variety ↑": study.over_seeds("variety")}
    series = [
        Series(
            label, [(float(s), factor * study.mean([r.number(name) for r in seeds]), "") for s, seeds in scales.items()]
        )
        for label, name, factor in (("accuracy, %", "accuracy", 1), ("variety, % of real scenes", "variety", 100))
    ]
    return [
        "Variety is how much images of one prompt differ in their pixels, as a share of how much real scenes do.",
        "",
        *study.results_table(
            "guidance", scales, {n: c for n, c in columns.items() if "caption" not in n and "loss" not in n}
        ),
        *draw(path, "guidance", series, "guidance scale", "%"),
    ]


def _rates(results: Sequence[Result]) -> list[str]:
    searched, rows = _searched(results), []
    rates = choose(searched)
    for arm, tried in study.group_by(searched, *ARM).items():
        best = rates[_arm(*arm)]
        cells = [f"{result.values['lr']:g}: {_held_out_loss(result):.4f}" for result in tried]
        marked = [f"**{cell}**" if r.values["lr"] == best else cell for cell, r in zip(cells, tried, strict=True)]
        rows.append([", ".join(arm), *marked])
    return markdown_table(
        ["way, encoder, size", *(f"rate {index}: held-out loss" for index in range(1, len(RATES) + 1))], rows
    )


STUDY = study.Study(
    "Text conditioning",
    "Which way should a caption enter the network, from which encoder, and does following a prompt improve with compute?",
    runs,
    report,
    seeds=3,
    search=search,
    choose=choose,
    prompts=True,
)
