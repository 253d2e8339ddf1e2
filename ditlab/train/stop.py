"""SIGTERM, which schedulers send before they end a job: the run saves a checkpoint and ends."""

from __future__ import annotations

import signal
import threading
from typing import Any

import torch
import torch.distributed as dist

from ditlab.runtime.distributed import Processes


class StopSignal:
    """Whether SIGTERM was received, by any process; all processes learn of it at the same step.

    The flag is all-reduced on CPUs during the next step, so no step waits for it.
    """

    def __init__(self, processes: Processes):
        self.processes, self.requested, self._received = processes, False, False
        self._flag = torch.zeros((), dtype=torch.int64)
        self._reduction: Any = None
        main = threading.current_thread() is threading.main_thread()
        self._previous: Any = signal.signal(signal.SIGTERM, self._receive) if main else None

    def close(self) -> None:
        """Restore the previous handler."""
        if self._previous is not None:
            signal.signal(signal.SIGTERM, self._previous)

    def _receive(self, *_: object) -> None:
        self._received = True

    def poll(self) -> None:
        """Once a step: read the flag of the step before, and start to reduce the flag of this one."""
        if self.processes.size == 1:
            self.requested = self._received
            return
        if self._reduction is not None:
            self._reduction.wait()
            self.requested = bool(self._flag)
        self._flag = torch.tensor(int(self._received))
        self._reduction = dist.all_reduce(self._flag, group=self.processes.cpu_group, async_op=True)
