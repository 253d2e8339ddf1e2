"""``ditlab demo``: the main job end to end."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ditlab.cli.flags import parse
from ditlab.runtime.console import log


@dataclass(frozen=True)
class DemoOptions:
    """Train on handwritten digits, sample, measure and draw; takes at most six minutes, less accurate on a slow machine."""

    out: str = "runs/demo"
    """Run folder."""
    device: str = ""
    """cpu, cuda, cuda:1 or mps; empty: a GPU if there is one."""


def demo(arguments: list[str]) -> None:
    """Train on handwritten digits for a few minutes, then sample, measure and draw."""
    options = parse(DemoOptions, arguments, "demo")
    from ditlab.cli.demo_run import run_demo
    from ditlab.runtime.device import select_device

    run_demo(Path(options.out), log, select_device(options.device))
