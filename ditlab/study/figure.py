"""The figures of reports: points and lines with their names, in one style."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ditlab.runtime import files


@dataclass(frozen=True)
class Series:
    """Points that belong together.

    Attributes:
        name: in the legend; empty where the axis says it.
        x: across.
        y: up.
        labels: beside the points.
        spread: of each y, drawn as a bar.
        line: join the points.
        color: of matplotlib's cycle, by number, so that it means the same in every figure of a report.
        marker: of the points.
    """

    name: str
    x: Sequence[float]
    y: Sequence[float]
    labels: Sequence[str] = ()
    spread: Sequence[float] = ()
    line: bool = True
    color: int | None = None
    marker: str = "o"
    style: dict[str, Any] = field(default_factory=dict)


def draw(
    path: Path,
    series: Sequence[Series],
    xlabel: str,
    ylabel: str,
    title: str = "",
    logx: bool = False,
    logy: bool = False,
    also: Callable[[Any], None] | None = None,
) -> None:
    """Write a figure as PNG.

    Args:
        path: of the PNG.
        series: what is drawn.
        xlabel: with its unit.
        ylabel: likewise.
        title: above.
        logx: the axis is logarithmic.
        logy: likewise.
        also: draws more, on matplotlib's axes.

    Raises:
        UserError: the place cannot be written.
    """
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(7.5, 5), layout="constrained")
    for index, each in enumerate(series):
        color = f"C{index if each.color is None else each.color}"
        style = {"marker": each.marker, "color": color, "linestyle": "-" if each.line else "", **each.style}
        axes.errorbar(each.x, each.y, yerr=each.spread or None, label=each.name, capsize=3, **style)
        for x, y, label in zip(each.x, each.y, each.labels, strict=False):
            axes.annotate(label, (x, y), textcoords="offset points", xytext=(6, 5), fontsize=8, color=color)
    axes.set(xlabel=xlabel, ylabel=ylabel, title=title)
    axes.set_xscale("log" if logx else "linear")
    axes.set_yscale("log" if logy else "linear")
    if logy:  # plain numbers, since a distance seldom spans decades
        axes.yaxis.set_major_formatter("{x:g}")
        axes.yaxis.set_minor_formatter("{x:g}")
    if also is not None:  # last: a scale sets ticks anew
        also(axes)
    axes.grid(alpha=0.25, which="both")
    if sum(bool(each.name) for each in series) > 1:
        axes.legend(fontsize=9)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    plt.close(figure)
    files.write_file(path, buffer.getvalue())
