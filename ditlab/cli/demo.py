"""``ditlab demo``: the main job end to end."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ditlab.cli.flags import parse
from ditlab.runtime.console import log


@dataclass(frozen=True)
class DemoOptions:
    """Train on digits, measure, and show."""

    out: str = "runs/demo"
    """Run folder."""


def demo(arguments: list[str]) -> None:
    """Train on digits for about three minutes, measure the samples, and draw them."""
    options = parse(DemoOptions, arguments, "demo")
    from ditlab.cli.demo_run import run_demo

    run_demo(Path(options.out), log)
