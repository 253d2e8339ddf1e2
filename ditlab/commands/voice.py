"""What commands say to the person at the terminal."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ditlab.processes import Processes


def say(line: str) -> None:
    """Tell the person at the terminal; work goes on where nobody listens any more, as after ``| head``."""
    try:
        print(line, flush=True)
    except BrokenPipeError:
        sys.stdout = Path(os.devnull).open("w")  # noqa: SIM115 - as long as the program lasts


def say_nothing(line: str) -> None:
    """What processes other than the first say."""


def voice(processes: Processes) -> Callable[[str], None]:
    """How one of several processes speaks: the first for all."""
    return say if processes.first else say_nothing
