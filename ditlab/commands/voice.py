"""What commands say to the person at the terminal."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ditlab.processes import Processes


def say(line: str) -> None:
    """Tell the person at the terminal."""
    print(line, flush=True)


def say_nothing(line: str) -> None:
    """What processes other than the first say."""


def voice(processes: Processes) -> Callable[[str], None]:
    """How one of several processes speaks: the first for all."""
    return say if processes.first else say_nothing
