"""Figures drawn by matplotlib, as images."""

from __future__ import annotations

import io
from typing import Any

from PIL import Image


def subplots(count: int, columns: int, side: float = 2.0) -> tuple[Any, list[Any]]:
    """A figure with ``count`` axes of ``side`` inches in up to so many columns, and the axes."""
    from matplotlib.figure import Figure

    columns = min(count, columns)
    rows = -(-count // columns)
    figure = Figure(figsize=(side * columns, side * rows), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False).flatten().tolist()
    for axis in axes[count:]:
        axis.set_axis_off()
    return figure, axes[:count]


def outline(column: int, row: int) -> Any:
    """The outline of a patch on a map of patches."""
    from matplotlib.patches import Rectangle

    return Rectangle((column - 0.5, row - 0.5), 1, 1, fill=False, edgecolor="tab:orange", linewidth=2)


def render(figure: Any) -> Image.Image:
    """A figure as an image."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    return Image.open(buffer)
