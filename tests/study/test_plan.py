"""What studies enumerate, and the file their workers read."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from ditlab.errors import UserError
from ditlab.models import DiTConfig, NetworkInput, UNetConfig, cost
from ditlab.recipes import find_recipe
from ditlab.study import STUDIES, Plan
from ditlab.study.ladder import RUNGS
from ditlab.study.study_run import Result, StudyRun, finished

MakePlan = Callable[[str], Plan]


@pytest.mark.parametrize("study", STUDIES)
def test_cells_have_names_of_their_own_and_runs_one_recipe_each(study: str, plan: MakePlan) -> None:
    cells = plan(study).cells
    assert len({cell.name for cell in cells}) == len(cells)
    recipes = {cell.run: cell.recipe for cell in cells}
    for cell in cells:
        assert recipes[cell.run] == cell.recipe
        assert cell.recipe.name == cell.run
        cell.recipe.check()
        assert (cell.recipe.train.images - cell.recipe.train.samples) == 0  # one picture, at the end


@pytest.mark.parametrize("study", STUDIES)
@pytest.mark.parametrize("seeds", [1, 2])
def test_seeds_repeat_every_setting(study: str, seeds: int, plan: MakePlan) -> None:
    cells = replace(plan(study), seeds=seeds).cells
    for seed in range(seeds):
        assert sum(cell.values["seed"] == seed for cell in cells) == len(cells) // seeds
        assert {cell.recipe.seed for cell in cells if cell.values["seed"] == seed} == {seed}


def test_scaling_has_nine_cells_at_equal_images_and_others_of_comparable_compute(plan: MakePlan) -> None:
    cells = plan("scaling").cells
    equal = [cell for cell in cells if cell.values["times"] == 1]
    assert len(equal) == 9
    assert len({cell.recipe.train.images for cell in equal}) == 1
    shape = NetworkInput(1, 8, 8, 10)

    def spent(cell: StudyRun) -> float:
        return cost(cell.recipe.model, shape).gmacs * cell.recipe.train.images

    ends = [cost(cell.recipe.model, shape).gmacs for cell in equal]
    assert max(ends) > 200 * min(ends)  # the paper's span is 330
    longer = [spent(cell) for cell in cells if cell.values["times"] > 1]
    shorter = [spent(cell) for cell in cells if cell.values["times"] < 1]
    assert min(shorter) < max(longer)
    assert max(shorter) < max(spent(cell) for cell in equal)


def test_conditioning_is_the_four_blocks_over_three_seeds(plan: MakePlan) -> None:
    cells = plan("conditioning").cells
    assert len(cells) == 12
    blocks = [(cell.recipe.model.block, cell.recipe.seed) for cell in cells if isinstance(cell.recipe.model, DiTConfig)]
    assert len(set(blocks)) == 12


def test_the_u_nets_are_matched_in_multiply_accumulates(plan: MakePlan) -> None:
    shape = NetworkInput(1, 8, 8, 10)
    by_size: dict[str, dict[str, float]] = {}
    for cell in plan("unet").cells:
        assert isinstance(cell.recipe.model, UNetConfig) == (cell.values["network"] == "U-Net")
        by_size.setdefault(cell.values["size"], {})[cell.values["network"]] = cost(cell.recipe.model, shape).gmacs
    assert len(by_size) == 3
    for pair in by_size.values():
        assert pair["U-Net"] == pytest.approx(pair["DiT"], rel=0.15), by_size


def test_sampling_trains_each_size_once(plan: MakePlan) -> None:
    cells = plan("sampling").cells
    assert len({cell.run for cell in cells}) == 3
    assert {cell.sample.steps for cell in cells} >= {5, 250}
    assert {cell.sample.guidance.scale for cell in cells} >= {1.0, 3.0}
    assert {cell.sample.sampler for cell in cells} == {
        "ddpm",
        "euler",
        "heun",
        "dpm-solver",
    }  # DDIM is Euler on its path


def test_the_ladder_changes_one_thing_a_rung(plan: MakePlan) -> None:
    cells = {
        (cell.values["how"], cell.values["rung"]): json.loads(cell.recipe.to_json()) for cell in plan("ladder").cells
    }
    before = cells["together", "the paper"]
    assert before["diffusion"] == {
        "schedule": "linear-beta", "target": "epsilon", "learned_variance": True, "times": "uniform",
        "label_dropout": 0.1, "direction": False,
    }  # fmt: skip
    assert before["train"]["beta2"] == 0.999

    def changed(a: dict, b: dict) -> set[str]:
        return {
            f"{part}.{key}"
            for part in ("model", "diffusion", "train")
            for key in b[part]
            if a[part][key] != b[part][key]
        }

    flow = cells["together", "rectified flow"]
    assert changed(before, flow) == {"diffusion.schedule", "diffusion.target", "diffusion.learned_variance"}
    assert changed(flow, cells["together", RUNGS[1]]) == {"train.beta2"}
    for rung in RUNGS[2:]:
        alone = changed(flow, cells["alone", rung])
        assert len(alone) == 1, rung
        last = cells["together", RUNGS[RUNGS.index(rung) - 1]]
        assert changed(last, cells["together", rung]) == alone
    assert len(cells) == 2 * len(RUNGS) - 1


def test_a_plan_goes_to_its_file_and_back(plan: MakePlan, tmp_path: Path) -> None:
    for study in STUDIES:
        one = replace(plan(study), seeds=2, images=1_280, count=1_500)
        one.save(tmp_path)
        again = Plan.load(tmp_path)
        assert again == one
        assert [cell.key() for cell in again.cells] == [cell.key() for cell in one.cells]


@pytest.mark.parametrize("name", ["fashion", "cifar10"])
def test_each_study_has_its_form_for_larger_data(name: str, tmp_path: Path) -> None:
    recipe, _ = find_recipe(name)
    shapes = {"fashion": NetworkInput(1, 28, 28, 10), "cifar10": NetworkInput(3, 32, 32, 10)}
    for study in set(STUDIES) - {"unet"}:  # which looks at the images themselves
        for cell in Plan(study, recipe).cells:
            if cell.recipe.autoencoder.kind == "pixels":
                assert cost(cell.recipe.model, shapes[name]).gmacs > 0
            cell.recipe.check()
    with pytest.raises(UserError, match="give --path"):
        Plan("scaling", find_recipe("cifar10")[0]).check()


def test_a_plan_that_makes_no_sense_is_one_line(plan: MakePlan, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="unknown study 'scalling'"):
        plan("scalling").check()
    with pytest.raises(UserError, match="--seeds -1"):
        replace(plan("ladder"), seeds=-1).check()
    with pytest.raises(UserError, match="not a study's plan"):
        Plan.load(tmp_path)


def test_a_result_is_taken_for_its_own_cell_only(plan: MakePlan, tmp_path: Path) -> None:
    cell = plan("conditioning").cells[0]
    assert finished(cell, tmp_path) is None
    numbers = {"FD": {"value": 1.0, "spread": None}}
    result = Result(cell.name, cell.values, cell.key(), "FD", numbers, {}, {}, {}, {})
    result.save(tmp_path)
    assert finished(cell, tmp_path) == result
    other = replace(cell, recipe=replace(cell.recipe, train=replace(cell.recipe.train, lr=0.5)))
    with pytest.raises(UserError, match=r"recipe.train.lr 0.004 there, 0.5 here\); choose another --out"):
        finished(other, tmp_path)
    (tmp_path / f"{cell.name}.json").write_text("{")
    with pytest.raises(UserError, match="damaged"):
        finished(cell, tmp_path)
