"""What a measurement was, on paper: the numbers with how they were made, and the nearest training images."""

from __future__ import annotations

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
UP = ("precision", "recall", "Inception score", "score-")  # better when larger
NEITHER = ("closer",)  # best at what is expected; all others are better when smaller
COLUMNS = 8  # made images a row


@dataclass(frozen=True)
class Evaluation:
    """One measurement.

    Attributes:
        numbers: of the made images, by name.
        floor: of real images against real images, by the same names.
        how: everything the numbers depend on, in words.
    """

    numbers: dict[str, Number]
    floor: dict[str, Number]
    how: dict[str, str]

    def record(self) -> dict[str, object]:
        """As JSON has it."""
        return asdict(self)

    @classmethod
    def from_record(cls, record: dict) -> Evaluation:
        """Back from JSON.

        Raises:
            KeyError, TypeError, ValueError, AttributeError: it is no such record.
        """
        numbers, floor = ({name: _number(**number) for name, number in record[part].items()} for part in PARTS)
        return cls(numbers, floor, {str(name): str(value) for name, value in record["how"].items()})

    def rows(self) -> list[tuple[str, str, str]]:
        """Name, number, and what real images get, of each number."""
        return [
            (f"{name} {_arrow(name)}".rstrip(), str(number), str(self.floor.get(name, "")))
            for name, number in self.numbers.items()
        ]

    def table(self) -> Table:
        """For the terminal."""
        table = Table(title=self.how.get("samples", ""), title_justify="left")
        table.add_column("")
        for column in ("made", "real against real"):
            table.add_column(column, justify="right")
        for row in self.rows():
            table.add_row(*row)
        return table


def _number(value: float, spread: float | None = None) -> Number:
    return Number(float(value), None if spread is None else float(spread))


def _arrow(name: str) -> str:
    return "↑" if name.startswith(UP) else "" if name.startswith(NEITHER) else "↓"


def append_result(folder: Path, evaluation: Evaluation) -> None:
    """Add a measurement to ``results.jsonl`` of a folder and write its ``report.md`` anew from all of them.

    Raises:
        UserError: the file that stands there is damaged, or the disk is full; what stood is unchanged.
    """
    everything = [*read_results(folder), evaluation]
    lines = (folder / RESULTS).read_text().splitlines() if len(everything) > 1 else []
    files.write_file(folder / RESULTS, "\n".join([*lines, json.dumps(evaluation.record()), ""]))
    files.write_file(folder / REPORT, report(everything))


def read_results(folder: Path) -> list[Evaluation]:
    """All measurements of a folder, the oldest first.

    Raises:
        UserError: the file is damaged, or there is none beside the report of something else.
    """
    path = folder / RESULTS
    if not path.exists():
        if (folder / REPORT).exists() and not (folder / REPORT).read_text().startswith(TITLE):
            raise UserError(f"{folder} holds a {REPORT} of something else; choose another --out")
        return []
    try:
        return [Evaluation.from_record(json.loads(line)) for line in path.read_text().splitlines() if line.strip()]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path} is damaged ({error}); move it away, or choose another --out") from error


def report(evaluations: Sequence[Evaluation]) -> str:
    """Measurements as Markdown, the newest first."""
    lines = [TITLE, ""]
    for evaluation in reversed(evaluations):
        how = evaluation.how
        lines += [f"## {how.get('samples', 'samples')}", ""]
        lines += markdown_table(("", "made", "real against real"), evaluation.rows())
        lines += markdown_table(("", ""), how.items())
        if "nearest" in how:
            lines += [f"![made images beside the nearest training images]({how['nearest']})", ""]
    return "\n".join(lines)


def write_neighbours(neighbours: Neighbours, path: Path) -> None:
    """Draw made images, below each the training image nearest in features, and the one nearest in pixels.

    Raises:
        UserError: the place cannot be written.
    """
    columns, rows = min(len(neighbours.made), COLUMNS), []
    for start in range(0, len(neighbours.made), columns):
        for images in (neighbours.made, neighbours.in_features, neighbours.in_pixels):
            row = images[start : start + columns]
            blank = np.full((columns - len(row), *row.shape[1:]), 255, np.uint8)
            rows.append(np.concatenate([row, blank]))
    names = ("made", "nearest in features", "nearest in pixels") * (len(rows) // 3)
    write_png(grid(np.concatenate(rows), columns, names), path)
