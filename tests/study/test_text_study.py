"""The study of text: its search of learning rates, its report, and a tiny real one with shared latents."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from conftest import RATE, plan_of, results_by_law

from ditlab.errors import UserError
from ditlab.recipes import find_recipe
from ditlab.study import STUDIES, Plan, text
from ditlab.study import accuracy as measured
from ditlab.study import run as study_run
from ditlab.study.preset import PRESETS
from ditlab.study.report import write_report
from ditlab.study.study_run import Result, gmacs
from ditlab.study.text import DROPOUTS, ENCODERS, RATES, SCALES, WAYS, choose
from ditlab.study.worker import train_and_measure
from ditlab.train import TrainConfig


def test_the_search_comes_first_and_gives_each_arm_its_own_rate() -> None:
    plan = plan_of("text")
    searched = replace(plan, rates={}).runs
    assert len(searched) == (len(WAYS) + len(ENCODERS) - 1 + 2) * len(RATES)
    assert {run.values["seed"] for run in searched} == {0}
    results = [
        result for result in results_by_law("text", lambda run, gmacs: 1.0) if result.name in {r.name for r in searched}
    ]
    assert set(choose(results).values()) == {RATE}

    def best(result: Result) -> float:  # another rate for one arm
        pooled = result.values["way"] == "pooled"
        return 0.1 if pooled and result.values["lr"] == 2 * RATE else result.number("held-out loss")

    changed = [
        replace(each, numbers={**each.numbers, "held-out loss": {"value": best(each), "spread": None}})
        for each in results
    ]
    chosen = choose(changed)
    assert chosen.pop("pooled-tokens-M") == 2 * RATE
    assert set(chosen.values()) == {RATE}
    rates = {**chosen, "pooled-tokens-M": 2 * RATE}
    of_pooled = {
        run.recipe.train.lr
        for run in replace(plan, rates=rates).runs
        if run.values["seed"] and run.values["way"] == "pooled"
    }
    assert of_pooled == {2 * RATE}


def test_each_setting_is_varied_alone() -> None:
    runs = [run for run in plan_of("text").runs if run.values["seed"] == 1]
    default = {"way": "in-context", "encoder": "tokens", "size": "M", "budget": "images", "dropout": 0.1}
    default |= {"captions": "full", "scale": 3.0, "lr": RATE, "seed": 1}
    changed = [{name for name, value in run.values.items() if default[name] != value} for run in runs]
    assert sorted(map(len, changed)) == sorted([0] + [1] * (len(runs) - 4) + [2] * 3)  # the ways at equal compute
    for name, others in (
        ("way", 3),
        ("encoder", 2),
        ("size", 2),
        ("dropout", len(DROPOUTS) - 1),
        ("scale", len(SCALES) - 1),
    ):
        assert changed.count({name}) == others
    assert changed.count({"captions"}) == 1
    assert changed.count({"way", "budget"}) == 3


def test_equal_compute_is_equal() -> None:
    runs = [run for run in plan_of("text").runs if run.values["seed"] == 1]
    spent = {run.name: gmacs(run.recipe) * run.recipe.train.images for run in runs if run.values["budget"] == "compute"}
    reference = next(run for run in runs if run.values["way"] == "in-context" and run.values["scale"] == 3)
    for name, each in spent.items():
        assert each == pytest.approx(gmacs(reference.recipe) * reference.recipe.train.images, rel=0.01), name


def test_the_report_ranks_the_ways_and_follows_compute(tmp_path: Path) -> None:
    order = {"pooled": 10.0, "cross-attention": 30.0, "in-context": 40.0, "joint": 20.0}
    page = write_report(plan_of("text"), _by(lambda values: order[values["way"]]), tmp_path).read_text()
    assert "At equal images: in-context 40.0, cross-attention 30.0, joint 20.0, pooled 10.0." in page
    assert page.count(f"**{RATE:g}: 0.4000**") == 8
    assert re.search(r"\| 8 \| 40 \| 30 \|", page)
    sizes = {"S": 10.0, "M": 20.0, "L": 30.0}
    page = write_report(plan_of("text"), _by(lambda values: sizes[values["size"]]), tmp_path).read_text()
    assert float(re.search(r"position \+([0-9.]+)", page)[1]) > 10  # type: ignore[index]


def _by(accuracy: Callable[[dict], float]) -> list[Result]:
    return results_by_law("text", lambda run, gmacs: accuracy(run.values))


def test_what_cannot_be_studied_is_said_before_any_training() -> None:
    with pytest.raises(UserError, match="'text' needs captions whose images can be judged; give --recipe scenes"):
        Plan("text", find_recipe("digits")[0]).check()
    with pytest.raises(UserError, match="'scaling' is of images with classes, and recipe 'scenes' has captions"):
        Plan("scaling", find_recipe("scenes")[0]).check()


def test_variety_is_one_for_real_scenes_and_zero_for_equal_images(monkeypatch: pytest.MonkeyPatch) -> None:
    run = plan_of("text").runs[0]
    drawn: list[str] = []

    def real(model: object, run: object, texts: list[str]) -> np.ndarray:
        drawn.extend(texts)
        every = [prompt for task in measured.tasks() for prompt in measured.prompts(task, 4, 0, False)]
        return measured.render([prompt for prompt in every for _ in range(4)], (32, 32), seed=7)

    monkeypatch.setattr(measured, "_sample", real)
    assert measured._variety(None, run) == pytest.approx(1, abs=0.15)  # type: ignore[arg-type]
    assert len(drawn) == 96
    monkeypatch.setattr(measured, "_sample", lambda *arguments: np.repeat(real(*arguments)[::4], 4, axis=0))
    assert measured._variety(None, run) == 0  # type: ignore[arg-type]


def test_a_tiny_study_shares_its_latents_and_trains_at_the_rate_it_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(PRESETS, "scenes", ({"M": (1, 16, 2)}, (1,), "M", 1, 64, 4e-3, 1))
    pooled = replace(
        text.STUDY,
        search=lambda preset: [text._run(preset, lr, way="pooled") for lr in (1e-3, 2e-3)],
        runs=lambda preset: [text._run(preset, way="pooled")],
        report=lambda results, folder: [f"{len(results)} results", ""],
    )
    monkeypatch.setitem(STUDIES, "pooled", pooled)
    trained: list[str] = []

    def work(costs: dict[str, float], out: Path, *rest: object) -> None:
        for training in costs:  # in this process, which needs no start
            trained.append(training)
            train_and_measure(Plan.load(out), training, out)

    monkeypatch.setattr(study_run, "_work", work)
    recipe, _ = find_recipe("scenes")
    short = TrainConfig(images=64, batch=32, lr=1e-3, log=32, checkpoint=64, samples=64, threads=1, precision="fp32")
    recipe = replace(
        recipe, data=replace(recipe.data, size=(16,), limit=64), train=short, autoencoder_train=short, sample_images=4,
        autoencoder=replace(recipe.autoencoder, widths=(8, 8)),
    )  # fmt: skip
    plan, out, lines = Plan("pooled", recipe, seeds=2), tmp_path / "study", []
    results = study_run.run_study(plan, out, 1, lines.append, device="cpu")
    assert "0 of 2 runs that search learning rates measured, 2 trainings to do" in lines[0]
    assert any("2 of 3 runs measured, 1 trainings to do" in line for line in lines)
    chosen = min(results[:2], key=lambda result: result.number("held-out loss")).values["lr"]
    assert results[2].values == {**results[0].values, "lr": chosen, "seed": 1}
    for result in results:
        assert (result.metric, result.training["images"]) == ("accuracy", 64)
        assert 0 <= result.distance <= 100
        assert result.number("variety") > 0
        assert result.sampling["network_calls"] == pytest.approx(30, abs=2)  # 15 steps, guided
    made = {path.name for path in (out / "runs").iterdir() if path.is_dir()}
    assert made == set(trained) == {result.key["recipe"]["name"] for result in results}  # nothing is encoded twice
    assert {"shared-autoencoder", "shared-latents"} <= {path.name for path in out.iterdir()}
    assert study_run.run_study(plan, out, 1, lines.append, device="cpu") == results
    assert len(trained) == 3
