"""A run that hangs ends, and says where."""

from __future__ import annotations

import contextlib
import faulthandler
import os
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

HUNG = 3  # exit code


class Watchdog:
    """Ends the process with one line and exit code 3 where no step is finished for ``timeout`` seconds.

    A process that waits for another one, for a file system or for a GPU that stopped answering would wait for ever; under
    ``torchrun --max-restarts`` its end is what brings the run back.

    Args:
        timeout: seconds.
        folder: where ``hang-RANK.txt`` tells what every thread was doing.
        rank: of this process.
    """

    def __init__(self, timeout: float, folder: Path, rank: int):
        self.timeout, self.path, self.rank = timeout, folder / f"hang-{rank}.txt", rank
        self._last = time.monotonic()
        self._paused = 0
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True, name="watchdog")

    def __enter__(self) -> Watchdog:
        self.beat()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()

    def beat(self) -> None:
        """A step is finished."""
        self._last = time.monotonic()

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Work that may take its time: pictures, checkpoints."""
        self._paused += 1
        try:
            yield
        finally:
            self._paused -= 1
            self.beat()

    def _watch(self) -> None:
        while not self._done.wait(min(1.0, self.timeout / 4)):
            waited = time.monotonic() - self._last
            if waited > self.timeout and not self._paused:
                with contextlib.suppress(OSError), self.path.open("w") as file:
                    faulthandler.dump_traceback(file)
                who = f"process {self.rank}" if "RANK" in os.environ else "training"
                print(
                    f"ditlab: {who} finished no step for {waited:.0f} s (--train.timeout {self.timeout:g}) and ends; "
                    f"{self.path} says where it hung; the same command goes on from the last checkpoint",
                    file=sys.stderr,
                    flush=True,
                )
                os._exit(HUNG)
