"""Comparisons with a peer: timed in alternation, printed as a table, written as JSON."""

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
        name: of the workload.
        peer: the library it is compared with.
        device: name of the device.
        precision: of ditlab's matrix products; the peer's is in its name.
        ours: median rate of ditlab.
        theirs: median rate of the peer.
        unit: of both rates.
        ratio: median over rounds of ours / theirs; above 1 ditlab is faster.
        spread: smallest and largest ratio of a round.
        more: other figures, by name.
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
    """The name of a device in a table."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"CPU, {torch.get_num_threads()} threads"


def wait(device: torch.device) -> None:
    """Block until a GPU has finished its queued work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def seconds(work: Callable[[], object], device: torch.device, repeats: int) -> float:
    """Seconds of one call, averaged over ``repeats`` calls."""
    wait(device)
    start = time.perf_counter()
    for _ in range(repeats):
        work()
    wait(device)
    return (time.perf_counter() - start) / repeats


def in_turn(
    ours: Callable[[], object],
    theirs: Callable[[], object] | None,
    device: torch.device,
    rounds: int,
    repeats: int,
    warm: int = 2,
) -> tuple[list[float], list[float]]:
    """Seconds per call of both, in alternation after ``warm`` calls each, so that a slow moment affects both."""
    for work in (ours, theirs):
        for _ in range(warm if work is not None else 0):
            work()  # type: ignore[misc]
    own, others = [], []
    for _ in range(rounds):
        own.append(seconds(ours, device, repeats))
        if theirs is not None:
            others.append(seconds(theirs, device, repeats))
    return own, others


def compare(
    name: str,
    peer: str,
    device: torch.device,
    precision: str,
    unit: str,
    count: float,
    own: Sequence[float],
    others: Sequence[float],
    **more: float | str,
) -> Row:
    """A row from seconds per call, where one call does ``count`` of ``unit``."""
    ratios = [b / a for a, b in zip(own, others, strict=True)] if others else []
    return Row(
        name, peer, device_name(device), precision,
        round(count / statistics.median(own), 3),
        round(count / statistics.median(others), 3) if others else None,
        unit,
        round(statistics.median(ratios), 3) if ratios else None,
        (round(min(ratios), 3), round(max(ratios), 3)) if ratios else None,
        more,
    )  # fmt: skip


def arguments(description: str) -> argparse.ArgumentParser:
    """A parser with the flags that all benchmarks share."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--json", type=Path, help="write the rows to this file")
    parser.add_argument("--quick", action="store_true", help="under two minutes on two cores, with more noise")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    return parser


def show(title: str, measured: Iterable[Row], path: Path | None) -> None:
    """Print rows; with a path, also write them after each row, so that an interrupted benchmark keeps its rows."""
    rows = []
    for one in measured:
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
    record = {
        "title": title,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "date": datetime.now(UTC).date().isoformat(),
        "rows": [asdict(row) for row in rows],
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(record, indent=2) + "\n")
