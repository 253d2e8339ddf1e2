"""``ditlab demo``: the main job end to end."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ditlab.commands.voice import say
from ditlab.flags import parse


@dataclass(frozen=True)
class DemoOptions:
    """Train on digits, measure, and show."""

    out: str = "runs/demo"
    """Run folder."""


def demo(arguments: list[str]) -> None:
    """Train on digits for about three minutes, measure the samples, and draw them."""
    options = parse(DemoOptions, arguments, "demo")
    from ditlab.demo import run_demo

    run_demo(Path(options.out), say)
