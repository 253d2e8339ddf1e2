"""The time of each phase and operation of a step: a trace and a table."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import torch
from torch.profiler import profile, record_function

from ditlab.runtime import files

WARM, STEPS = 3, 5  # warm-up steps, which compile and allocate, and profiled steps
PREFIX = "ditlab: "


class Profile:
    """Profiles a few steps of training and writes ``trace.json`` and ``profile.txt``; without a folder it does nothing."""

    def __init__(self, folder: Path | None, log: Callable[[str], None]):
        self.folder, self.log = folder, log
        self._step, self._profiler = 0, None

    def close(self) -> None:
        """Stop; log a line if there were too few steps for a profile."""
        if self._profiler is not None:
            self._profiler.stop()
        if self.folder is not None:
            self.log(f"no profile: it takes {WARM + STEPS} steps, this session had {self._step}")

    def phase(self, name: str) -> AbstractContextManager:
        """A phase of a step, a row of the table."""
        return nullcontext() if self._profiler is None else record_function(PREFIX + name)

    def step(self) -> None:
        """A step has ended."""
        if self.folder is None:
            return
        self._step += 1
        if self._step == WARM:
            os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # else it prints lines
            self._profiler = profile()
            self._profiler.start()
        elif self._step == WARM + STEPS and self._profiler is not None:
            self._profiler.stop()
            self._write(self._profiler, self.folder)
            self._profiler, self.folder = None, None

    def _write(self, profiler: profile, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        profiler.export_chrome_trace(str(folder / "trace.json"))
        events = profiler.key_averages()
        phases = {event.key: event.cpu_time_total for event in events if event.key.startswith(PREFIX)}
        total = sum(phases.values())
        lines = [f"{STEPS} steps, {total / STEPS / 1000:.2f} ms each on the CPU's clock", ""]
        for name, microseconds in sorted(phases.items(), key=lambda item: -item[1]):
            milliseconds = microseconds / STEPS / 1000
            lines.append(f"{name.removeprefix(PREFIX):24s} {milliseconds:9.2f} ms a step {microseconds / total:6.1%}")
        order = "self_cuda_time_total" if torch.cuda.is_available() else "self_cpu_time_total"
        lines += ["", f"By operation, {STEPS} steps together:", "", events.table(sort_by=order, row_limit=30)]
        files.write_file(folder / "profile.txt", "\n".join(lines))
        self.log(f"profile: {folder / 'profile.txt'}, trace for Perfetto or chrome://tracing: {folder / 'trace.json'}")
