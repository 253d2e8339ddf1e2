"""The runs of each study, the plan file, and stored results of this version and earlier ones."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from conftest import cached_cost
from specs import image_spec

from ditlab.errors import UserError
from ditlab.models import DiTConfig, UNetConfig
from ditlab.recipes import find_recipe
from ditlab.study import STUDIES, Plan
from ditlab.study.ablation import BASELINE, STEPS
from ditlab.study.study_run import Result, StudyRun, finished, load_results

MakePlan = Callable[[str], Plan]


@pytest.mark.parametrize("study", STUDIES)
def test_runs_have_unique_names_and_each_training_has_one_recipe(study: str, plan: MakePlan) -> None:
    runs = plan(study).runs
    assert len({run.name for run in runs}) == len(runs)
    recipes = {run.training: run.recipe for run in runs}
    for run in runs:
        assert recipes[run.training] == run.recipe
        assert run.recipe.name == run.training
        run.recipe.check()
        assert (run.recipe.train.images - run.recipe.train.samples) == 0  # one picture, at the end


@pytest.mark.parametrize("study", STUDIES)
@pytest.mark.parametrize("seeds", [1, 2])
def test_seeds_repeat_every_setting(study: str, seeds: int, plan: MakePlan) -> None:
    runs = replace(plan(study), seeds=seeds).runs
    searched = {run.name for run in replace(plan(study), rates={}).runs} if study == "text" else set()
    of_seeds = [[run for run in runs if run.values["seed"] == seed] for seed in range(seeds)]
    first = [run.name for run in of_seeds[0]]
    for seed, same in enumerate(of_seeds):
        assert {run.recipe.seed for run in same} == {seed}
        names = {run.name.replace(f"seed{seed}", "seed0") for run in same}
        assert set(first) - searched <= names <= set(first)
        assert len(names) == len(same)


def test_scaling_has_nine_runs_at_equal_images_and_others_of_comparable_compute(plan: MakePlan) -> None:
    runs = plan("scaling").runs
    equal = [run for run in runs if run.values["times"] == 1]
    assert len(equal) == 9
    assert len({run.recipe.train.images for run in equal}) == 1
    shape = image_spec(1, 8, 8, 10)

    def spent(run: StudyRun) -> float:
        return cached_cost(run.recipe.model, shape).gmacs * run.recipe.train.images

    ends = [cached_cost(run.recipe.model, shape).gmacs for run in equal]
    assert max(ends) > 200 * min(ends)  # the paper's span is 330
    longer = [spent(run) for run in runs if run.values["times"] > 1]
    shorter = [spent(run) for run in runs if run.values["times"] < 1]
    assert min(shorter) < max(longer)
    assert max(shorter) < max(spent(run) for run in equal)


def test_conditioning_is_the_four_blocks_over_three_seeds(plan: MakePlan) -> None:
    runs = plan("conditioning").runs
    assert len(runs) == 12
    blocks = [(run.recipe.model.block, run.recipe.seed) for run in runs if isinstance(run.recipe.model, DiTConfig)]
    assert len(set(blocks)) == 12


def test_the_u_nets_are_matched_in_multiply_accumulates(plan: MakePlan) -> None:
    shape = image_spec(1, 8, 8, 10)
    by_size: dict[str, dict[str, float]] = {}
    for run in plan("unet").runs:
        assert isinstance(run.recipe.model, UNetConfig) == (run.values["network"] == "U-Net")
        by_size.setdefault(run.values["size"], {})[run.values["network"]] = cached_cost(run.recipe.model, shape).gmacs
    assert len(by_size) == 3
    for pair in by_size.values():
        assert pair["U-Net"] == pytest.approx(pair["DiT"], rel=0.15), by_size


def test_sampling_trains_each_size_once(plan: MakePlan) -> None:
    runs = plan("sampling").runs
    assert len({run.training for run in runs}) == 3
    assert {run.sample.steps for run in runs} >= {5, 250}
    assert {run.sample.guidance.scale for run in runs} >= {1.0, 3.0}
    assert {run.sample.sampler for run in runs} == {
        "ddpm",
        "euler",
        "heun",
        "dpm-solver",
    }  # DDIM is Euler on its path


def test_each_ablation_step_changes_one_setting(plan: MakePlan) -> None:
    runs = {(run.values["mode"], run.values["step"]): json.loads(run.recipe.to_json()) for run in plan("ablation").runs}
    before = runs["together", BASELINE]
    assert before["diffusion"] == {
        "schedule": "linear-beta", "target": "epsilon", "learned_variance": True, "times": "uniform",
        "condition_dropout": 0.1, "direction": False, "zero_snr": False, "time_scale": 1000.0, "shift": 1.0,
    }  # fmt: skip
    assert before["train"]["beta2"] == 0.999

    def changed(a: dict, b: dict) -> set[str]:
        return {
            f"{part}.{key}"
            for part in ("model", "diffusion", "train")
            for key in b[part]
            if a[part][key] != b[part][key]
        }

    flow = runs["together", "rectified flow"]
    assert changed(before, flow) == {"diffusion.schedule", "diffusion.target", "diffusion.learned_variance"}
    assert changed(flow, runs["together", STEPS[1]]) == {"train.beta2"}
    for step in STEPS[2:]:
        alone = changed(flow, runs["alone", step])
        assert len(alone) == 1, step
        last = runs["together", STEPS[STEPS.index(step) - 1]]
        assert changed(last, runs["together", step]) == alone
    assert len(runs) == 2 * len(STEPS) - 1


def test_a_plan_survives_saving_and_loading(plan: MakePlan, tmp_path: Path) -> None:
    for study in STUDIES:
        one = replace(plan(study), seeds=2, images=1_280, count=1_500)
        one.save(tmp_path)
        again = Plan.load(tmp_path)
        assert again == one
        assert [run.key() for run in again.runs] == [run.key() for run in one.runs]


@pytest.mark.parametrize("name", ["fashion", "cifar10"])
def test_each_study_has_a_preset_for_larger_data(name: str, tmp_path: Path) -> None:
    recipe, _ = find_recipe(name)
    shapes = {"fashion": image_spec(1, 28, 28, 10), "cifar10": image_spec(3, 32, 32, 10)}
    for study in set(STUDIES) - {"unet", "text"}:  # which look at the images themselves
        for run in Plan(study, recipe).runs:
            if run.recipe.autoencoder.kind == "pixels":
                assert cached_cost(run.recipe.model, shapes[name]).gmacs > 0
            run.recipe.check()
    with pytest.raises(UserError, match="give --path"):
        Plan("scaling", find_recipe("cifar10")[0]).check()


def test_an_invalid_plan_is_refused_in_one_line(plan: MakePlan, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="unknown study 'scalling'"):
        plan("scalling").check()
    with pytest.raises(UserError, match="'ladder' has a new name: ablation"):
        plan("ladder").check()
    with pytest.raises(UserError, match="--seeds -1"):
        replace(plan("ablation"), seeds=-1).check()
    with pytest.raises(UserError, match="not the plan of a study"):
        Plan.load(tmp_path)


def test_a_result_is_accepted_for_its_own_run_only(plan: MakePlan, tmp_path: Path) -> None:
    run = plan("conditioning").runs[0]
    assert finished(run, tmp_path) is None
    numbers = {"FD": {"value": 1.0, "spread": None}}
    result = Result(run.name, run.values, run.key(), "FD", numbers, {}, {}, {}, {})
    result.save(tmp_path)
    assert finished(run, tmp_path) == result
    other = replace(run, recipe=replace(run.recipe, train=replace(run.recipe.train, lr=0.5)))
    with pytest.raises(
        UserError, match=r"recipe.train.lr is 0.004 in the file and 0.5 in this study\); choose another --out"
    ):
        finished(other, tmp_path)
    (tmp_path / f"{run.name}.json").write_text("{")
    with pytest.raises(UserError, match="damaged"):
        finished(run, tmp_path)


def test_plans_and_results_of_earlier_versions_are_read(plan: MakePlan, tmp_path: Path) -> None:
    one = plan("ablation")
    one.save(tmp_path)
    record = json.loads((tmp_path / "plan.json").read_text())
    record["study"] = "ladder"
    record["recipe"]["train"]["rate"] = record["recipe"]["train"].pop("lr")
    (tmp_path / "plan.json").write_text(json.dumps(record))
    assert Plan.load(tmp_path) == one
    run = one.runs[1]
    numbers = {"FD": {"value": 1.0, "spread": None}}
    key = run.key()
    key["recipe"]["train"]["rate"] = key["recipe"]["train"].pop("lr")
    values = {"rung": "rectified flow", "how": "together", "seed": 0}
    Result(run.name, values, key, "FD", numbers, {}, {}, {}, {}).save(tmp_path / "cells")
    first, second = load_results(one.runs[:2], tmp_path)
    assert first is None
    assert second is not None
    assert (second.distance, second.values, second.key) == (1.0, run.values, run.key())
    assert (tmp_path / "results" / f"{run.name}.json").exists()
