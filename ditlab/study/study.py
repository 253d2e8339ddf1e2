"""A study: a question, its runs and its report; and the columns that all reports share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ditlab.study.preset import StudyPreset
from ditlab.study.study_run import Result, StudyRun


@dataclass(frozen=True)
class Study:
    """A question and the runs that answer it.

    Attributes:
        title: of the report.
        question: one or two sentences.
        runs: all runs for a preset and a number of seeds, in the report's order.
        report: writes figures into a folder and returns the report's lines of Markdown.
        seeds: default number of seeds.
    """

    title: str
    question: str
    runs: Callable[[StudyPreset, int], list[StudyRun]]
    report: Callable[[Sequence[Result], Path], list[str]]
    seeds: int = 1


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


def group_by(results: Sequence[Result], *names: str) -> dict[tuple[Any, ...], list[Result]]:
    """Results grouped by the values of ``names``, in order of appearance; with all names, one group is one setting's seeds."""
    groups: dict[tuple[Any, ...], list[Result]] = {}
    for result in results:
        groups.setdefault(tuple(result.values[name] for name in names), []).append(result)
    return groups


def metric_columns(results: Sequence[Result]) -> list[str]:
    """Table columns: distance, precision and recall over seeds."""
    return [
        mean_and_std([result.number(name) for result in results]) for name in (results[0].metric, "precision", "recall")
    ]


def metric_header(metric: str) -> list[str]:
    """The header of ``metric_columns``."""
    return [f"{metric} ↓", "precision ↑", "recall ↑"]


def cost_columns(result: Result) -> list[str]:
    """Table columns: parameters and GMACs of the network."""
    return [f"{result.network['parameters']:,.0f}", f"{result.network['gmacs']:.3g}"]
