"""What interrupts the steps of a run: SIGTERM, after which it saves a checkpoint and ends, and pictures by time."""

from __future__ import annotations

import signal
import threading
from typing import Any

import torch
import torch.distributed as dist

from ditlab.runtime.distributed import Processes

FIRST_PICTURE = 60.0  # seconds of training before the first preview


class PictureTimes:
    """When previews are drawn: after ``first`` seconds of training, then at twice the time of the last picture."""

    def __init__(self, first: float):
        self._next = first

    def due(self, seconds: float) -> bool:
        """Whether a preview is due after so many seconds of training; once for each."""
        if seconds < self._next:
            return False
        self.drawn(seconds)
        return True

    def drawn(self, seconds: float) -> None:
        """A picture is drawn now, so that the next preview is not needed soon."""
        self._next = max(self._next, 2 * seconds)


class StopSignal:
    """Whether SIGTERM was received, and whether a preview is due, in any process; all learn of it at the same step.

    The flags are all-reduced on CPUs during the next step, so no step waits for them.
    """

    def __init__(self, processes: Processes):
        self.processes, self.requested, self.picture, self._received = processes, False, False, False
        self._flags = torch.zeros(2, dtype=torch.int64)
        self._reduction: Any = None
        main = threading.current_thread() is threading.main_thread()
        self._previous: Any = signal.signal(signal.SIGTERM, self._receive) if main else None

    def close(self) -> None:
        """Restore the previous handler."""
        if self._previous is not None:
            signal.signal(signal.SIGTERM, self._previous)

    def _receive(self, *_: object) -> None:
        self._received = True

    def poll(self, picture: bool = False) -> None:
        """Once a step: read the flags of the step before, and start to reduce those of this one."""
        if self.processes.size == 1:
            self.requested, self.picture = self._received, picture
            return
        if self._reduction is not None:
            self._reduction.wait()
            self.requested, self.picture = map(bool, self._flags)
        self._flags = torch.tensor([self._received, picture], dtype=torch.int64)
        self._reduction = dist.all_reduce(self._flags, group=self.processes.cpu_group, async_op=True)
