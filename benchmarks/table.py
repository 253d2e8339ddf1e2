"""Rows of a comparison: measured in turn, shown as a table, written as JSON."""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table


@dataclass(frozen=True)
class Row:
    """One comparison.

    Attributes:
        name: what was done.
        peer: against what.
        device: where.
        precision: of the peer's and of our matrix products.
        ours: median of our rate.
        theirs: median of the peer's rate.
        unit: of both.
        ratio: median over the rounds of ours over theirs; above 1 ditlab is ahead.
        spread: smallest and largest ratio of a round.
        more: other figures.
    """

    name: str
    peer: str
    device: str
    precision: str
    ours: float
    theirs: float | None
    unit: str
    ratio: float | None
    spread: tuple[float, float] | None
    more: dict[str, float | str]


def device_name(device: torch.device) -> str:
    """What to call a device in a table."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"CPU, {torch.get_num_threads()} threads"


def wait(device: torch.device) -> None:
    """Until a GPU has done what it was told."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def seconds(work: Callable[[], object], device: torch.device, repeats: int) -> float:
    """Of one call, over ``repeats`` in a row."""
    wait(device)
    began = time.perf_counter()
    for _ in range(repeats):
        work()
    wait(device)
    return (time.perf_counter() - began) / repeats


def in_turn(
    ours: Callable[[], object],
    theirs: Callable[[], object] | None,
    device: torch.device,
    rounds: int,
    repeats: int,
    warm: int = 2,
) -> tuple[list[float], list[float]]:
    """Seconds a call of both, measured turn by turn after ``warm`` calls each, so that a slow moment hits both alike."""
    for work in (ours, theirs):
        for _ in range(warm if work is not None else 0):
            work()  # type: ignore[misc]
    mine, others = [], []
    for _ in range(rounds):
        mine.append(seconds(ours, device, repeats))
        if theirs is not None:
            others.append(seconds(theirs, device, repeats))
    return mine, others


def compare(
    name: str,
    peer: str,
    device: torch.device,
    precision: str,
    unit: str,
    count: float,
    mine: Sequence[float],
    others: Sequence[float],
    **more: float | str,
) -> Row:
    """A row from seconds a call, each call doing ``count`` of ``unit``."""
    ratios = [other / own for own, other in zip(mine, others, strict=True)] if others else []
    return Row(
        name, peer, device_name(device), precision,
        round(count / statistics.median(mine), 3),
        round(count / statistics.median(others), 3) if others else None,
        unit,
        round(statistics.median(ratios), 3) if ratios else None,
        (round(min(ratios), 3), round(max(ratios), 3)) if ratios else None,
        more,
    )  # fmt: skip


def arguments(what: str) -> argparse.ArgumentParser:
    """The flags every benchmark has."""
    parser = argparse.ArgumentParser(description=what)
    parser.add_argument("--json", type=Path, help="write the rows here")
    parser.add_argument("--quick", action="store_true", help="under two minutes on two cores, less sure")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    return parser


def show(title: str, coming: Iterable[Row], path: Path | None) -> None:
    """Print rows, and write them where a path is given, after each: what is cut short keeps what it has measured."""
    rows = []
    for one in coming:
        rows.append(one)
        if path is not None:
            _write(title, rows, path)
    table = Table(title=title, title_justify="left")
    for column in ("", "against", "precision", "ditlab", "peer", "unit", "ratio", "spread"):
        table.add_column(column, justify="right" if column in ("ditlab", "peer", "ratio", "spread") else "left")
    for row in rows:
        theirs = "not measured" if row.theirs is None else f"{row.theirs:,.3g}"
        ratio = "" if row.ratio is None else f"{row.ratio:.2f}"
        spread = "" if row.spread is None else f"{row.spread[0]:.2f} to {row.spread[1]:.2f}"
        table.add_row(row.name, row.peer, row.precision, f"{row.ours:,.3g}", theirs, row.unit, ratio, spread)
    console = Console(width=None if Console().is_terminal else 140)
    console.print(table)
    for row in rows:
        if row.more:
            console.print(f"{row.name} ({row.precision}): " + ", ".join(f"{k} {v}" for k, v in row.more.items()))
    if path is not None:
        console.print(f"rows: {path}")


def _write(title: str, rows: Sequence[Row], path: Path) -> None:
    made = {
        "title": title,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "date": datetime.now(UTC).date().isoformat(),
        "rows": [asdict(row) for row in rows],
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(made, indent=2) + "\n")
