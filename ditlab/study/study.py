"""A study: a question, its runs and its report; and the columns of tables that all reports share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ditlab.runtime.console import markdown_table
from ditlab.study.preset import StudyPreset
from ditlab.study.study_run import Result, StudyRun

Column = Callable[[list[Result]], object]  # a cell from the seeds of a setting


@dataclass(frozen=True)
class Study:
    """A question and the runs that answer it."""

    title: str  # of the report
    question: str  # one or two sentences
    runs: Callable[[StudyPreset], list[StudyRun]]  # the runs of a preset, which holds the seed, in the report's order
    report: Callable[[Sequence[Result], Path], list[str]]  # writes figures into a folder; returns Markdown lines
    seeds: int = 1  # default number of seeds
    search: Callable[[StudyPreset], list[StudyRun]] | None = None  # runs of the first seed that come before the others
    choose: Callable[[Sequence[Result]], dict[str, float]] | None = (
        None  # the learning rates, from the results of the search
    )
    prompts: bool = False  # on images with captions: measured by whether samples show what the prompt says


def mean(values: Sequence[float]) -> float:
    """The arithmetic mean."""
    return sum(values) / len(values)


def mean_distance(results: Sequence[Result]) -> float:
    """The mean of the study's metric over seeds."""
    return mean([result.distance for result in results])


def mean_and_std(values: Sequence[float]) -> str:
    """``mean ± standard deviation`` over seeds; the value alone for one seed."""
    if len(values) == 1:
        return f"{values[0]:.4g}"
    center = mean(values)
    return f"{center:.4g} ± {(sum((value - center) ** 2 for value in values) / (len(values) - 1)) ** 0.5:.2g}"


def group_by(results: Sequence[Result], *names: str) -> dict[Any, list[Result]]:
    """Results by their values of ``names`` (a tuple, or the value of a single name), in order of appearance.

    With all names, one group is the seeds of one setting.
    """
    groups: dict[Any, list[Result]] = {}
    for result in results:
        key = tuple(result.values[name] for name in names)
        groups.setdefault(key if len(names) > 1 else key[0], []).append(result)
    return groups


def results_table(first: str, settings: dict[str, list[Result]], columns: dict[str, Column]) -> list[str]:
    """A Markdown table with one row per setting: its name under ``first``, and ``columns`` computed from its seeds."""
    rows = [[name, *(column(seeds) for column in columns.values())] for name, seeds in settings.items()]
    return markdown_table([first, *columns], rows)


def _of_first_seed(part: str, name: str, spec: str) -> Column:
    return lambda seeds: format(getattr(seeds[0], part)[name], spec)


def over_seeds(name: str) -> Column:
    """Mean and standard deviation of a number of the results."""
    return lambda seeds: mean_and_std([result.number(name) for result in seeds])


COLUMNS = {
    "tokens": _of_first_seed("network", "tokens", "g"),
    "parameters": _of_first_seed("network", "parameters", ",.0f"),
    "GMACs": _of_first_seed("network", "gmacs", ".3g"),
    "training GMACs": _of_first_seed("training", "gmacs", ".3g"),
    "images/s": _of_first_seed("training", "images_per_second", ",.0f"),
    "precision ↑": over_seeds("precision"),
    "recall ↑": over_seeds("recall"),
}


def columns(metric: str, *names: str) -> dict[str, Column]:
    """``COLUMNS`` of these names, then the metric, precision and recall over seeds."""
    known = {**COLUMNS, f"{metric} ↓": over_seeds(metric)}
    return {name: known[name] for name in (*names, f"{metric} ↓", "precision ↑", "recall ↑")}
