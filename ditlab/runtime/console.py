"""Log lines and progress bars."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.progress import Progress

    from ditlab.runtime.distributed import Processes


def log(line: str) -> None:
    """Tell the person at the terminal; work goes on where nobody listens any more, as after ``| head``."""
    try:
        print(line, flush=True)
    except BrokenPipeError:
        sys.stdout = Path(os.devnull).open("w")  # noqa: SIM115 - as long as the program lasts


def log_nothing(line: str) -> None:
    """What processes other than the first say."""


def main_process_log(processes: Processes) -> Callable[[str], None]:
    """How one of several processes speaks: the first for all."""
    return log if processes.is_main else log_nothing


def markdown_table(headers: Sequence[str], rows: Iterable[Sequence[object]]) -> list[str]:
    """The lines of a Markdown table, and the blank line that ends it."""
    lines = [f"| {' | '.join(headers)} |", "|---" * len(headers) + "|"]
    return [*lines, *(f"| {' | '.join(map(str, row))} |" for row in rows), ""]


def progress_bar(shown: bool = True) -> Progress:
    """The bar of all long work: what, how far, how fast, how long still."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[rate]}"))
    console = Console(stderr=True)
    return Progress(*columns, TimeRemainingColumn(), console=console, disable=not (shown and console.is_terminal))
