"""Commands and scripts in processes forked from one that has the imports: they start in milliseconds, not in seconds."""

from __future__ import annotations

import atexit
import multiprocessing
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

IMPORTS = [  # what commands import, also inside functions
    "ditlab.cli.main", "ditlab.cli.train", "ditlab.cli.encode", "ditlab.cli.sample", "ditlab.recipes.evaluate",
    "ditlab.study", "tyro", "torch._dynamo", "torch._inductor.compile_fx", "torch.profiler", "torch.distributed.fsdp",
    "torch.distributed.checkpoint", "diffusers.models.autoencoders.autoencoder_kl", "sklearn.datasets", "scipy.linalg",
    "matplotlib.backends.backend_agg", "matplotlib.figure", "matplotlib.ticker",
]  # fmt: skip
CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(IMPORTS)


def _work(arguments: list[str], script: str, log: Path, environment: dict[str, str], folder: Path) -> None:
    for ending, number in ((".out", 1), (".err", 2)):
        os.dup2(os.open(log.with_suffix(ending), os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    import torch

    torch.set_num_threads(1)
    try:
        if script:
            sys.argv = ["-c", *arguments]
            exec(compile(script, "script", "exec"), {"__name__": "__main__"})
        else:
            from ditlab.cli.main import run

            sys.argv = ["ditlab", *arguments]
            run()
    finally:
        atexit._run_exitfuncs()  # multiprocessing ends its processes without them


class Forked:
    """A forked process that runs ``ditlab ARGUMENTS``, or a script with these arguments."""

    def __init__(
        self, *arguments: object, script: str = "", cwd: Path | None = None, environment: Mapping[str, object] | None = None
    ):  # fmt: skip
        self._log = Path(tempfile.mkstemp(prefix="forked-")[1])
        given = {**os.environ, **{name: str(value) for name, value in (environment or {}).items()}}
        words = list(map(str, arguments))
        self._process = CONTEXT.Process(target=_work, args=(words, script, self._log, given, cwd or Path.cwd()))
        self._process.start()
        assert self._process.pid is not None
        self.pid: int = self._process.pid

    def poll(self) -> int | None:
        """The exit code, negative for a signal; None while the process runs."""
        return self._process.exitcode

    def kill(self) -> None:
        """Send SIGKILL."""
        self._process.kill()

    def wait(self, timeout: float = 200) -> subprocess.CompletedProcess[str]:
        """Wait for the end; raises TimeoutExpired after so many seconds, and kills the process."""
        self._process.join(timeout)
        if self._process.exitcode is None:
            self._process.kill()
            self._process.join()
            raise subprocess.TimeoutExpired("ditlab", timeout, self._read(".out"), self._read(".err"))
        return subprocess.CompletedProcess("ditlab", self._process.exitcode, self._read(".out"), self._read(".err"))

    def _read(self, ending: str) -> str:
        path = self._log.with_suffix(ending)
        return path.read_text() if path.exists() else ""


def ranks(count: int, *arguments: object, script: str = "") -> list[Forked]:
    """So many processes with the variables that torchrun sets."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    shared = {"WORLD_SIZE": count, "LOCAL_WORLD_SIZE": count, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    environments = [{**shared, "RANK": rank, "LOCAL_RANK": rank} for rank in range(count)]
    return [Forked(*arguments, script=script, environment=environment) for environment in environments]


def together(
    count: int, *arguments: object, script: str = "", timeout: float = 200
) -> subprocess.CompletedProcess[str]:
    """The end of so many ``ranks``; when one fails, the others are killed a second later.

    The exit code is that of the first that failed, or 0; the output is that of all, in rank order.
    """
    processes = ranks(count, *arguments, script=script)
    code, end = 0, time.monotonic() + timeout
    while any(process.poll() is None for process in processes) and time.monotonic() < end:
        failed = [found for process in processes if (found := process.poll())]
        if failed and not code:
            code, end = min(failed), time.monotonic() + 1  # a kill before the errors it causes
        time.sleep(0.01)
    for process in processes:
        process.kill()
    ended = [process.wait() for process in processes]
    code = code or min((each.returncode for each in ended if each.returncode), default=0)
    return subprocess.CompletedProcess(
        "ditlab", code, "".join(each.stdout for each in ended), "".join(each.stderr for each in ended)
    )
