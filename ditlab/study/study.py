"""What every study is: a question, its cells, and what their results say."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ditlab.pipelines import SampleConfig
from ditlab.recipes import Recipe
from ditlab.study.preset import StudyPreset
from ditlab.study.study_run import Result, StudyRun

Report = Callable[[Sequence[Result], Path], list[str]]


@dataclass(frozen=True)
class Study:
    """A question and how it is answered.

    Attributes:
        title: of the report.
        question: in a sentence or two.
        cells: of a form, over so many seeds.
        report: writes figures into a folder and gives the report's lines of Markdown.
        seeds: how many, unless told otherwise.
    """

    title: str
    question: str
    cells: Callable[[StudyPreset, int], list[StudyRun]]
    report: Report
    seeds: int = 1


def cell(
    form: StudyPreset,
    name: str,
    values: dict[str, Any],
    recipe: Recipe | None = None,
    sample: SampleConfig | None = None,
    run: str = "",
) -> StudyRun:
    """A cell of a form: the form's recipe and way of sampling unless others are given."""
    chosen = recipe or form.recipe
    seed = int(values.get("seed", 0))
    return StudyRun(
        name, run or name, replace(chosen, name=run or name, seed=seed), sample or form.sample, form.count, values
    )


def mean_and_spread(values: Sequence[float]) -> str:
    """Several seeds' values as ``mean ± standard deviation``; one as it is."""
    mean = sum(values) / len(values)
    if len(values) == 1:
        return f"{mean:.4g}"
    return f"{mean:.4g} ± {(sum((value - mean) ** 2 for value in values) / (len(values) - 1)) ** 0.5:.2g}"


def grouped(results: Sequence[Result], *names: str) -> dict[tuple[Any, ...], list[Result]]:
    """Results that share the values of ``names``, in the order they come: the seeds of one setting."""
    found: dict[tuple[Any, ...], list[Result]] = {}
    for result in results:
        found.setdefault(tuple(result.values[name] for name in names), []).append(result)
    return found


def quality(results: Sequence[Result]) -> list[str]:
    """Distance, precision and recall of one setting's seeds, as a row has them."""
    columns = [[result.distance for result in results]]
    columns += [[result.number(name) for result in results] for name in ("precision", "recall")]
    return [mean_and_spread(values) for values in columns]


def quality_header(metric: str) -> list[str]:
    """What stands above ``quality``."""
    return [f"{metric} ↓", "precision ↑", "recall ↑"]


def expense(result: Result) -> list[str]:
    """Parameters and GMACs of a network, as a row has them."""
    return [f"{result.network['parameters']:,.0f}", f"{result.network['gmacs']:.3g}"]
