"""Processes forked from one that has the imports: they start in milliseconds, not in seconds."""

from __future__ import annotations

import atexit
import multiprocessing
import os
import sys
from collections.abc import Mapping
from multiprocessing.context import ForkServerContext
from pathlib import Path

IMPORTS = [  # of a training run, also those inside functions
    "ditlab.cli.main", "ditlab.cli.train", "ditlab.recipes", "tyro", "torch._dynamo", "torch.profiler", "sklearn.datasets",
    "matplotlib.backends.backend_agg", "matplotlib.figure", "matplotlib.ticker",
]  # fmt: skip


def fork_context(*more: str) -> ForkServerContext:
    """A context whose processes are forked from one that has imported ``IMPORTS`` and ``more``."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([*IMPORTS, *more])
    return context


def run_forked(
    words: list[str], log: Path, before: str, command: bool = True, environment: Mapping[str, str] | None = None
) -> None:
    """Run Python code, then a ditlab command with the arguments ``words``, or, without ``command``, the code alone.

    Output goes to log.out and log.err. ``environment`` replaces the one the first process had.
    """
    for ending, number in ((".out", 1), (".err", 2)):
        os.dup2(os.open(log.with_suffix(ending), os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
    if environment is not None:
        os.environ.clear()
        os.environ.update(environment)
    sys.argv = ["ditlab" if command else "-c", *words]
    try:
        exec(before, {"__name__": "__main__"})
        if command:
            from ditlab.cli.main import run

            run()
    finally:
        atexit._run_exitfuncs()  # multiprocessing ends its processes without them
