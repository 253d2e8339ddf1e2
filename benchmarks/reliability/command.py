"""A ditlab command in a process of its own, which can be stopped, killed and read."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from multiprocessing.context import ForkServerContext
from pathlib import Path

from .forking import run_forked


class Failed(Exception):  # noqa: N818 - the result of a drill, not a fault of the program
    """A drill failed: part of a run was lost, or a message is missing."""


def expect(condition: object, message: str) -> None:
    """Raise Failed unless a condition holds."""
    if not condition:
        raise Failed(message)


class Command:
    """A ditlab command in a process of its own.

    Args:
        words: the arguments of ``ditlab``.
        log: output goes to log.out and log.err.
        before: Python code that the process runs first.
        launcher: arguments of python before ``-m ditlab``.
        fork: makes processes that have the imports; None starts a new interpreter.
    """

    def __init__(
        self, words: list[str], log: Path, before: str, launcher: tuple[str, ...], fork: ForkServerContext | None
    ):
        self.log = log
        for ending in (".out", ".err"):  # the process may be killed before it opens them
            log.with_suffix(ending).touch()
        if fork:
            forked = fork.Process(target=run_forked, args=(words, log, before))
            forked.start()
            self._code, pid = lambda: forked.exitcode, forked.pid
        else:
            script = f"{before}\nfrom ditlab.cli.main import run\nrun()"
            head = ("-c", script) if before else (*launcher, "-m", "ditlab")
            with log.with_suffix(".out").open("w") as out, log.with_suffix(".err").open("w") as err:
                started = subprocess.Popen([sys.executable, *head, *words], stdout=out, stderr=err)
            self._code, pid = started.poll, started.pid
        assert pid is not None
        self.pid = pid

    @property
    def code(self) -> int | None:
        """Exit code, negative for a signal; None while the process runs."""
        return self._code()

    @property
    def out(self) -> str:
        """Standard output so far."""
        return self.log.with_suffix(".out").read_text()

    @property
    def err(self) -> str:
        """Standard error so far."""
        return self.log.with_suffix(".err").read_text()

    @property
    def resumed_from(self) -> int | None:
        """Images of the checkpoint from which it resumed, by its output."""
        found = re.search(r"from (?:the checkpoint at )?([\d,]+) of [\d,]+ images$", self.out, re.MULTILINE)
        return int(found[1].replace(",", "")) if found else None

    def wait(self, seconds: float = 300) -> int:
        """Wait for the end; returns the exit code."""
        self.until(lambda: False, seconds)
        code = self.code
        assert code is not None
        return code

    def until(self, condition: Callable[[], object], seconds: float = 300) -> bool:
        """Wait until a condition holds; False if the process ended before."""
        end = time.monotonic() + seconds
        while not condition():
            if self.code is not None:
                return bool(condition())
            if time.monotonic() > end:
                self.send(signal.SIGKILL)
                raise Failed(f"nothing happened for {seconds:.0f} s: {self.out[-300:]} {self.err[-300:]}")
            time.sleep(0.001)
        return True

    def pause(self, seconds: float) -> None:
        """Let the process run for some seconds."""
        end = time.monotonic() + seconds
        self.until(lambda: time.monotonic() > end)

    def send(self, number: signal.Signals) -> None:
        """Send a signal."""
        os.kill(self.pid, number)

    def freeze(self, condition: Callable[[], object]) -> bool:
        """Stop the process (SIGSTOP) at a moment when a condition holds; False if it ended before."""
        while self.until(condition) and self.code is None:
            self.send(signal.SIGSTOP)
            while state_of(self.pid) not in "TZ":
                time.sleep(0.0005)
            if condition():
                return self.code is None
            self.send(signal.SIGCONT)
        return False

    def kill(self) -> None:
        """Kill the process, and torchrun's workers, if they still run."""
        with contextlib.suppress(OSError):  # it may end at this moment
            for pid in () if self.code is not None else (self.pid, *_children(self.pid)):
                os.kill(pid, signal.SIGKILL)

    def refused(self, *words: str, code: int = 2) -> str:
        """Wait for an end with an exit code and one line of error that contains the words; returns the line."""
        expect(self.wait() == code, f"exit code {self.code}, not {code}: {self.err[-500:]}")
        expect(self.err.startswith("ditlab: ") and self.err.count("\n") == 1, f"not one line: {self.err[-500:]}")
        for word in words:
            expect(word in self.err, f"{word!r} is not in: {self.err}")
        return self.err.removeprefix("ditlab: ").strip()

    def finished(self) -> None:
        """Wait for an end with exit code 0."""
        expect(self.wait() == 0, f"exit code {self.code}: {self.err[-500:]}")


def state_of(pid: int) -> str:
    """State of a process, one letter as ps shows it: T is stopped, Z has ended."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return "Z"


def _children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def worker(launcher: Command, rank: int) -> int:
    """Process id of one of torchrun's workers."""
    for pid in _children(launcher.pid):
        if f"\0RANK={rank}\0" in Path(f"/proc/{pid}/environ").read_text():
            return pid
    raise Failed(f"torchrun has no worker {rank}")
