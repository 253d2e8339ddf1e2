"""The figures of reports, in one style."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ditlab.runtime import files


@dataclass(frozen=True)
class Series:
    """One series of points.

    Attributes:
        name: in the legend; empty for none.
        x: horizontal values.
        y: vertical values.
        labels: texts next to the points.
        line: joins the points.
        marker: of the points.
    """

    name: str
    x: Sequence[float]
    y: Sequence[float]
    labels: Sequence[str] = ()
    line: bool = True
    marker: str = "o"


def draw(
    path: Path,
    series: Sequence[Series],
    xlabel: str,
    ylabel: str,
    logx: bool = False,
    logy: bool = False,
    also: Callable[[Any], None] | None = None,
) -> None:
    """Write a figure as PNG.

    Args:
        path: of the PNG.
        series: the points and lines.
        xlabel: with its unit.
        ylabel: with its unit.
        logx: a logarithmic x axis.
        logy: a logarithmic y axis.
        also: draws more on matplotlib's axes.

    Raises:
        UserError: the file is not writable.
    """
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(7.5, 5), layout="constrained")
    for index, each in enumerate(series):
        color = f"C{index}"
        style = "-" if each.line else "none"
        axes.plot(each.x, each.y, linestyle=style, marker=each.marker, color=color, label=each.name)
        for x, y, label in zip(each.x, each.y, each.labels, strict=False):
            axes.annotate(label, (x, y), textcoords="offset points", xytext=(6, 5), fontsize=8, color=color)
    axes.set(xlabel=xlabel, ylabel=ylabel)
    axes.set_xscale("log" if logx else "linear")
    axes.set_yscale("log" if logy else "linear")
    if logy:  # plain numbers: a distance seldom spans decades
        axes.yaxis.set_major_formatter("{x:g}")
        axes.yaxis.set_minor_formatter("{x:g}")
    if also is not None:  # last: setting a scale resets the ticks
        also(axes)
    axes.grid(alpha=0.25, which="both")
    if sum(bool(each.name) for each in series) > 1:
        axes.legend(fontsize=9)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    plt.close(figure)
    files.write_file(path, buffer.getvalue())
