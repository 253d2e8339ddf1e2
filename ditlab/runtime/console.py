"""Log lines and progress bars."""

from __future__ import annotations

import logging
import os
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.progress import Progress

    from ditlab.runtime.distributed import Processes


_bars = ContextVar("progress bars", default=True)


def log(line: str) -> None:
    """Print a line at once. If the reader of a pipe is gone, as after ``| head``, output stops and the work continues."""
    try:
        print(line, flush=True)
    except BrokenPipeError:
        sys.stdout = Path(os.devnull).open("w")  # noqa: SIM115 - open until the program exits


def log_nothing(line: str) -> None:
    """The log of processes other than the main one: nothing."""


def main_process_log(processes: Processes) -> Callable[[str], None]:
    """The log function of this process; only the main process prints."""
    return log if processes.is_main else log_nothing


def markdown_table(headers: Sequence[str], rows: Iterable[Sequence[object]]) -> list[str]:
    """The lines of a Markdown table, and the blank line that ends it."""
    lines = [f"| {' | '.join(headers)} |", "|---" * len(headers) + "|"]
    return [*lines, *(f"| {' | '.join(map(str, row))} |" for row in rows), ""]


@contextmanager
def without_bars() -> Iterator[None]:
    """Within it no progress bar is shown, as the Python API prints nothing."""
    token = _bars.set(False)
    try:
        yield
    finally:
        _bars.reset(token)


@contextmanager
def quiet_loading(library: Any) -> Iterator[None]:
    """Silence log lines and warnings of diffusers or transformers, and of the hub client, while a model is loaded.

    Errors are still raised.
    """
    verbosity, hub = library.logging.get_verbosity(), logging.getLogger("huggingface_hub")
    level = hub.level
    hub.setLevel(logging.CRITICAL)
    library.logging.set_verbosity(library.logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*local_dir_use_symlinks", category=UserWarning)
            yield
    finally:
        library.logging.set_verbosity(verbosity)
        hub.setLevel(level)


def duration(seconds: float) -> str:
    """A time in the unit that suits it: ``45 s``, ``12 min``, ``3.5 h``, ``4 days``."""
    for most, unit, name in ((90, 1, "s"), (90 * 60, 60, "min")):
        if seconds < most:
            return f"{seconds / unit:.0f} {name}"
    return f"{seconds / 3600:.1f} h" if seconds < 48 * 3600 else f"{seconds / 86400:,.0f} days"


def progress_bar(shown: bool = True) -> Progress:
    """A progress bar on stderr: task, progress, rate and time left; without a terminal, plain lines on stdout.

    Tasks need a ``rate`` field: a text or an object that prints as one; empty if the speed of the task is to be shown.
    """
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    shown = shown and _bars.get()
    if shown and not console.is_terminal:
        from ditlab.runtime.progress import PlainProgress

        return PlainProgress()
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[rate]}"))
    return Progress(*columns, TimeRemainingColumn(), console=console, disable=not shown)
