"""Results of evaluations as files: the numbers with everything they depend on, and the nearest training images."""

from __future__ import annotations

import html
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from rich.table import Table

from ditlab.errors import UserError
from ditlab.evaluate.evaluator import Neighbours
from ditlab.evaluate.measure import Number
from ditlab.pipelines import grid, write_png
from ditlab.runtime import files
from ditlab.runtime.console import markdown_table

RESULTS, REPORT, TITLE = "results.jsonl", "report.md", "# Evaluation"
PARTS = ("numbers", "floor")
HIGHER_IS_BETTER = ("precision", "recall", "Inception score", "score-")
NO_DIRECTION = ("closer",)  # best at its expected value; lower is better for all others
COLUMNS = 8  # generated images per row
HEADERS = ("", "generated", "real against real")


@dataclass(frozen=True)
class Evaluation:
    """One evaluation."""

    numbers: dict[str, Number]  # of the generated images, by name
    floor: dict[str, Number]  # of real images against real images, by the same names
    how: dict[str, str]  # everything the numbers depend on, as text by name

    @classmethod
    def from_record(cls, record: dict) -> Evaluation:
        """From JSON. KeyError, TypeError, ValueError or AttributeError: not such a record."""
        numbers, floor = ({name: _number(**number) for name, number in record[part].items()} for part in PARTS)
        return cls(numbers, floor, {str(name): str(value) for name, value in record["how"].items()})

    def rows(self) -> list[tuple[str, str, str]]:
        """Name, value of the generated images and value of real images, per metric."""
        return [
            (f"{name} {_arrow(name)}".rstrip(), str(number), str(self.floor.get(name, "")))
            for name, number in self.numbers.items()
        ]

    def __str__(self) -> str:
        """The samples, then a line for each metric."""
        title = self.how.get("samples", "")
        return "\n".join([title, *(f"{name}: {value} (real: {real or '-'})" for name, value, real in self.rows())])

    def _repr_html_(self) -> str:
        """A table for notebooks."""
        rows = (HEADERS, *self.rows())
        cells = ("".join(f"<td>{html.escape(cell)}</td>" for cell in row) for row in rows)
        return "<table>" + "".join(f"<tr>{row}</tr>" for row in cells) + "</table>"

    def table(self) -> Table:
        """For the terminal."""
        table = Table(title=self.how.get("samples", ""), title_justify="left")
        for header in HEADERS:
            table.add_column(header, justify="right" if header else "left")
        for row in self.rows():
            table.add_row(*row)
        return table


def _number(value: float, spread: float | None = None) -> Number:
    return Number(float(value), None if spread is None else float(spread))


def _arrow(name: str) -> str:
    return "↑" if name.startswith(HIGHER_IS_BETTER) else "" if name.startswith(NO_DIRECTION) else "↓"


def append_result(folder: Path, evaluation: Evaluation) -> None:
    """Append an evaluation to ``results.jsonl`` of a folder and rewrite its ``report.md`` from all of them.

    UserError: the existing file is damaged, or the disk is full; existing files are then unchanged.
    """
    everything = [*read_results(folder), evaluation]
    lines = (folder / RESULTS).read_text().splitlines() if len(everything) > 1 else []
    files.write_file(folder / RESULTS, "\n".join([*lines, json.dumps(asdict(evaluation)), ""]))
    files.write_file(folder / REPORT, report(everything))


def read_results(folder: Path) -> list[Evaluation]:
    """All evaluations of a folder, oldest first. UserError: the file is damaged, or the report is not of evaluations."""
    path = folder / RESULTS
    if not path.exists():
        if (folder / REPORT).exists() and not (folder / REPORT).read_text().startswith(TITLE):
            raise UserError(f"{folder} contains a {REPORT} that is not of an evaluation; choose another --out")
        return []
    try:
        return [Evaluation.from_record(json.loads(line)) for line in path.read_text().splitlines() if line.strip()]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path} is damaged ({error}); move it away, or choose another --out") from error


def report(evaluations: Sequence[Evaluation]) -> str:
    """Evaluations as Markdown, newest first."""
    lines = [TITLE, ""]
    for evaluation in reversed(evaluations):
        how = evaluation.how
        lines += [f"## {how.get('samples', 'samples')}", ""]
        lines += markdown_table(HEADERS, evaluation.rows())
        lines += markdown_table(("", ""), how.items())
        if "nearest" in how:
            lines += [f"![generated images and their nearest training images]({how['nearest']})", ""]
    return "\n".join(lines)


def write_neighbours(neighbours: Neighbours, path: Path) -> None:
    """Draw generated images, below each the training image nearest in features and the one nearest in pixels."""
    columns, rows = min(len(neighbours.generated), COLUMNS), []
    for start in range(0, len(neighbours.generated), columns):
        for images in (neighbours.generated, neighbours.in_features, neighbours.in_pixels):
            row = images[start : start + columns]
            blank = np.full((columns - len(row), *row.shape[1:]), 255, np.uint8)
            rows.append(np.concatenate([row, blank]))
    names = ("generated", "nearest in features", "nearest in pixels") * (len(rows) // 3)
    write_png(grid(np.concatenate(rows), columns, names), path)
