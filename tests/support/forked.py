"""Commands and scripts in processes forked from one that has the imports."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import tempfile
import time
import weakref
from pathlib import Path

from reliability.forking import fork_context, run_forked

CONTEXT = fork_context(
    "ditlab.cli.encode", "ditlab.cli.sample", "ditlab.recipes.evaluate", "ditlab.study", "torch._inductor.compile_fx",
    "torch.distributed.checkpoint", "torch.distributed.fsdp", "diffusers.models.autoencoders.autoencoder_kl", "scipy.linalg",
)  # fmt: skip
SECONDS = 200  # until a process is killed and the test fails


class Forked:
    """A forked process that runs ``ditlab ARGUMENTS``, or a script with these arguments; ``variables`` of its environment."""

    def __init__(self, *arguments: object, script: str = "", **variables: object):
        folder = tempfile.mkdtemp(prefix="forked-")
        weakref.finalize(self, shutil.rmtree, folder, ignore_errors=True)
        self._log = Path(folder, "log")
        given = {**os.environ, **{name: str(value) for name, value in variables.items()}}
        before = f"import torch\ntorch.set_num_threads(1)\n{script}"
        words = (list(map(str, arguments)), self._log, before, not script, given)
        self._process = CONTEXT.Process(target=run_forked, args=words)
        self._process.start()

    def poll(self) -> int | None:
        """The exit code, negative for a signal; None while the process runs."""
        return self._process.exitcode

    def kill(self) -> None:
        """Send SIGKILL."""
        self._process.kill()

    def wait(self) -> subprocess.CompletedProcess[str]:
        """Wait for the end; after ``SECONDS`` the process is killed and TimeoutExpired raised."""
        self._process.join(SECONDS)
        if self._process.exitcode is None:
            self._process.kill()
            self._process.join()
            raise subprocess.TimeoutExpired("ditlab", SECONDS, self._read(".out"), self._read(".err"))
        return subprocess.CompletedProcess("ditlab", self._process.exitcode, self._read(".out"), self._read(".err"))

    def _read(self, ending: str) -> str:
        path = self._log.with_suffix(ending)
        return path.read_text() if path.exists() else ""


def ranks(count: int, *arguments: object, script: str = "") -> list[Forked]:
    """So many processes with the variables that torchrun sets."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    shared = {"WORLD_SIZE": count, "LOCAL_WORLD_SIZE": count, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    return [Forked(*arguments, script=script, **shared, RANK=rank, LOCAL_RANK=rank) for rank in range(count)]


def together(count: int, *arguments: object, script: str = "") -> subprocess.CompletedProcess[str]:
    """The end of so many ``ranks``; when one fails, the others are killed a second later.

    The exit code is that of the first that failed, or 0; the output is that of all, in rank order.
    """
    processes = ranks(count, *arguments, script=script)
    code, end = 0, time.monotonic() + SECONDS
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
