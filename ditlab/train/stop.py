"""SIGTERM: what a scheduler sends before it takes the machine away. The run saves and ends."""

from __future__ import annotations

import signal
import threading
from typing import Any

import torch
import torch.distributed as dist

from ditlab.runtime.distributed import Processes


class StopSignal:
    """Whether a run was asked to stop; all processes learn of it at the same step.

    They tell each other beside the step, on CPUs, and hear the answer one step later, so nobody waits.

    Attributes:
        asked: whether to stop now.
    """

    def __init__(self, processes: Processes):
        self.processes, self.asked = processes, False
        self._here = False
        self._flag = torch.zeros((), dtype=torch.int64)
        self._telling: Any = None
        self._before: Any = None

    def __enter__(self) -> StopSignal:
        if threading.current_thread() is threading.main_thread():
            self._before = signal.signal(signal.SIGTERM, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        if self._before is not None:
            signal.signal(signal.SIGTERM, self._before)

    def _note(self, *_: object) -> None:
        self._here = True

    def listen(self) -> None:
        """Once a step: hear what was known a step ago, and tell what is known now."""
        if self.processes.size == 1:
            self.asked = self._here
            return
        if self._telling is not None:
            self._telling.wait()
            self.asked = bool(self._flag)
        self._flag = torch.tensor(int(self._here))
        self._telling = dist.all_reduce(self._flag, group=self.processes.cpu_group, async_op=True)
