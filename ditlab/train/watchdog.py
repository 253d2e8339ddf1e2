"""Ends a run that hangs, or that lost another process, with one line."""

from __future__ import annotations

import contextlib
import faulthandler
import os
import re
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn

import torch.distributed as dist
from torch.distributed.checkpoint.api import CheckpointException

from ditlab.runtime.distributed import ALONE, Processes

HUNG = 3  # exit code


class Watchdog:
    """Ends the process with one line and exit code 3 if no step finishes for ``timeout`` seconds.

    A process that waits for another process, a file system or a GPU that stopped responding would wait forever; under
    ``torchrun --max-restarts`` its end restarts the run. The same if a collective failed because another process ended.
    ``hang-RANK.txt`` in ``folder`` gets the stack of every thread. A thread watches, since
    ``faulthandler.dump_traceback_later`` ends a process with exit code 1 and without a message.
    """

    def __init__(self, timeout: float, folder: Path, processes: Processes = ALONE):
        self.timeout, self.path, self.processes = timeout, folder / f"hang-{processes.rank}.txt", processes
        self._last, self._paused = time.monotonic(), 0
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True, name="watchdog")

    def __enter__(self) -> Watchdog:
        self.beat()
        self._thread.start()
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        self._done.set()
        if self.processes.size > 1 and error is not None and (reason := _unreachable(error)):
            self._end(f"lost another process ({reason}) and ends")

    def beat(self) -> None:
        """A step has finished."""
        self._last = time.monotonic()

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Work without a time limit: pictures, checkpoints."""
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
                self._end(
                    f"finished no step for {waited:.0f} s (--train.timeout {self.timeout:g}) and ends; its stacks are "
                    f"in {self.path}"
                )

    def _end(self, what: str) -> NoReturn:
        """Print one line and exit at once: an orderly shutdown would wait for what does not respond."""
        who = f"process {self.processes.rank}" if self.processes.size > 1 else "training"
        cursor = "\x1b[?25h" if sys.stderr.isatty() else ""
        line = f"{cursor}ditlab: {who} {what}; run the same command to resume from the last checkpoint\n"
        os.write(2, line.encode())  # one write, not interleaved with other processes
        os._exit(HUNG)


def _unreachable(error: BaseException) -> str:
    """Why a collective failed; empty for any other error."""
    if not isinstance(error, (RuntimeError, CheckpointException)):
        return ""
    found = re.search(r"(?:gloo|nccl).*?\] ?(.*?)(?:\. |$)", str(error), re.IGNORECASE | re.MULTILINE)
    return found[1] if found else str(error).splitlines()[0] if isinstance(error, dist.DistError) else ""
