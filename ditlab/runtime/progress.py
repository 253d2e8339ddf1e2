"""Progress without a terminal: plain lines in place of the bar."""

from __future__ import annotations

import threading

from rich.progress import Progress, Task

from ditlab.runtime.console import duration, log

INTERVAL = 10.0  # seconds between two lines
WINDOW = 300.0  # seconds over which speed and time left are estimated


class PlainProgress(Progress):
    """Logs a line every ten seconds for each unfinished task; a thread does, so a long step delays no line."""

    def __init__(self):
        super().__init__(disable=True, speed_estimate_period=WINDOW)
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._log_lines, daemon=True, name="progress")

    def start(self) -> None:
        """Start to log."""
        self._thread.start()

    def stop(self) -> None:
        """Log no more lines."""
        self._stopped.set()
        self._thread.join()

    def _log_lines(self) -> None:
        while not self._stopped.wait(INTERVAL):
            for task in self.tasks:
                if task.total is None or task.completed < task.total:
                    log(progress_line(task))


def progress_line(task: Task) -> str:
    """What is done of a task, its speed and the time left: ``sampling: 128 of 1,000, 3.2/s, 5 min left``."""
    total = f" of {task.total:,.0f}" if task.total is not None else ""
    parts = [f"{task.description}: {task.completed:,.0f}{total}", task.fields.get("step", "")]
    parts.append(str(task.fields["rate"]) or (f"{task.speed:.3g}/s" if task.speed else ""))
    left = task.time_remaining
    parts.append(f"{duration(left)} left" if left is not None else f"{duration(task.elapsed or 0)} so far")
    return ", ".join(part for part in parts if part)
