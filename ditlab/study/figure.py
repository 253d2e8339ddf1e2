"""The figures of reports, in one style."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ditlab.runtime import files


@dataclass(frozen=True)
class Series:
    """Points (x, y, label) in one colour, named in the legend unless the name is empty; ``style`` is matplotlib's."""

    name: str
    points: Sequence[tuple[float, float, str]]
    style: str = "o-"
    color: str = ""


def draw(
    path: Path,
    title: str,
    series: Sequence[Series],
    xlabel: str,
    ylabel: str,
    log: str = "",
    xticks: Sequence[str] = (),
) -> list[str]:
    """Write a figure as PNG; returns the lines of Markdown that show it. Raises UserError if the file is not writable.

    The axes in ``log`` ("x", "xy") are logarithmic, y only if all its values are above 0; labels ``xticks`` are at x = 0, 1,
    2, ...
    """
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(7.5, 5), layout="constrained")
    for index, each in enumerate(series):
        color = each.color or f"C{index}"
        axes.plot(*list(zip(*each.points, strict=True))[:2], each.style, color=color, label=each.name)
        for x, y, label in each.points:
            axes.annotate(label, (x, y), textcoords="offset points", xytext=(6, 5), fontsize=8, color=color)
    axes.set(xlabel=xlabel, ylabel=ylabel)
    axes.set_xscale("log" if "x" in log else "linear")
    if "y" in log and all(y > 0 for each in series for _, y, _ in each.points):
        axes.set_yscale("log")  # plain numbers: a distance seldom spans decades
        axes.yaxis.set_major_formatter("{x:g}")
        axes.yaxis.set_minor_formatter("{x:g}")
    if xticks:  # after the scale, which resets them
        slanted = {"rotation": 35, "ha": "right"} if len(xticks) > 6 else {}
        axes.set_xticks(range(len(xticks)), xticks, **slanted)
    axes.grid(alpha=0.25, which="both")
    if sum(bool(each.name) for each in series) > 1:
        axes.legend(fontsize=9)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    plt.close(figure)
    files.write_file(path, buffer.getvalue())
    return [f"![{title}]({path.name})", ""]
