"""The reports of results that follow a known law."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import METRIC, results_by_law
from PIL import Image

from ditlab.study import STUDIES, Plan
from ditlab.study.report import write_report


@pytest.mark.parametrize("study", STUDIES)
@pytest.mark.parametrize("seeds", [1, 3])
def test_every_report_has_its_figures_tables_and_facts(
    study: str, seeds: int, plan: Callable[[str], Plan], tmp_path: Path
) -> None:
    results = results_by_law(study, lambda run, gmacs: 100 - 20 * math.log10(gmacs) + run.recipe.seed, seeds)
    page = write_report(plan(study), results, tmp_path).read_text()
    pictures = set(re.findall(r"\]\(([\w.]+\.png)\)", page)) - {"samples.png"}  # nothing was sampled here
    assert pictures
    for picture in pictures:
        with Image.open(tmp_path / picture) as image:
            assert image.size[0] > 400
    assert set(tmp_path.glob("*.png")) == {tmp_path / picture for picture in pictures}
    rows = [line for line in page.splitlines() if line.startswith("|")]
    assert len(rows) > len({run.values.get("size") for run in results})
    width = None
    for line in page.splitlines():  # a table's rows have as many columns as its head
        width = None if not line.startswith("|") else (line.count("|") if width is None else width)
        assert not line.startswith("|") or line.count("|") == width, line
    assert f"ditlab study {study} --recipe {'scenes' if study == 'text' else 'digits'}" in page
    assert study == "text" or "92.7" in page  # the floor
    assert "nan" not in page
    assert len(json.loads((tmp_path / "results.json").read_text())) == len(results)


def test_scaling_finds_the_law_it_was_given(tmp_path: Path, plan: Callable[[str], Plan]) -> None:
    results = results_by_law("scaling", lambda run, gmacs: 400 - 150 * math.log10(gmacs))
    page = write_report(plan("scaling"), results, tmp_path).read_text()
    assert f"Correlation of log GMACs with {METRIC}: -1.000" in page
    assert "as in the paper" in page
    assert re.search(r"= 400 -150 ", page)
    power = results_by_law("scaling", lambda run, gmacs: 10 * gmacs**-0.5)
    page = write_report(plan("scaling"), power, tmp_path).read_text()
    assert "to the power -0.500 ± 0.000" in page


def test_scaling_reports_a_correlation_weaker_than_the_papers(tmp_path: Path, plan: Callable[[str], Plan]) -> None:
    sizes = {"S": 3.0, "M": 2.0, "L": 1.0}
    results = results_by_law("scaling", lambda run, gmacs: 100 * sizes[run.values["size"]])
    page = write_report(plan("scaling"), results, tmp_path).read_text()
    assert "weaker than the paper's" in page
    assert re.search(r"size S, patch 4 to 1: tokens x 16, .* 300 to 300", page)


def test_conditioning_orders_the_blocks_and_counts_seeds(tmp_path: Path, plan: Callable[[str], Plan]) -> None:
    distance = {"adaln-zero": 2.0, "adaln": 1.0, "cross-attention": 3.0, "in-context": 4.0}
    results = results_by_law("conditioning", lambda run, gmacs: distance[run.values["block"]], seeds=3)
    page = write_report(plan("conditioning"), results, tmp_path).read_text()
    assert "From best to worst: adaln, adaln-zero, cross-attention, in-context." in page
    assert (
        "adaln-zero is better than adaln in 0 of 3 seeds; the distance of adaln is 0.5 ± 0 times that of adaln-zero"
        in page
    )
    assert "adaln-zero is better than in-context in 3 of 3 seeds" in page


def test_sampling_reports_whether_more_steps_replace_a_larger_model(
    tmp_path: Path, plan: Callable[[str], Plan]
) -> None:
    sizes = {"S": 30.0, "M": 20.0, "L": 10.0}
    results = results_by_law("sampling", lambda run, gmacs: sizes[run.values["size"]] + 1 / run.values["steps"])
    page = write_report(plan("sampling"), results, tmp_path).read_text()
    assert re.search(r"The best \S+ of S is 30 with 250 steps, .*; M has 20.2 with 5 steps", page)
    results = results_by_law("sampling", lambda run, gmacs: -sizes[run.values["size"]] + 50)
    page = write_report(plan("sampling"), results, tmp_path).read_text()
    assert "M does not reach it with any measured number of steps" in page


def test_the_ablation_gives_the_effect_of_each_step(tmp_path: Path, plan: Callable[[str], Plan]) -> None:
    names = [run.name for run in plan("ablation").runs]
    results = results_by_law("ablation", lambda run, gmacs: 100.0 - 3 * names.index(run.name))
    page = write_report(plan("ablation"), results, tmp_path).read_text()
    assert re.search(r"\| DiT \| 100 \|  \|", page)
    assert re.search(r"\| \+ rectified flow \| 97 \| -3 \|  \|  \|", page)
    assert re.search(r"\| \+ beta2 0.95 \| 94 \| -3 \| 94 \| -3 \|", page)  # alone and added up are the same run
    assert re.search(r"\| \+ logit-normal t \| 91 \| -3 \| 70 \| -27 \|", page)


@pytest.mark.parametrize("study", ["scaling", "sampling"])  # those that draw or fit logarithms
def test_a_metric_below_zero_is_reported(study: str, plan: Callable[[str], Plan], tmp_path: Path) -> None:
    """As an unbiased kernel distance near its floor may be."""
    results = results_by_law(study, lambda run, gmacs: -0.01 - 0.001 * math.log10(gmacs))
    page = write_report(plan(study), results, tmp_path).read_text()
    assert "nan" not in page
    assert ("No power law" in page) == (study == "scaling")
