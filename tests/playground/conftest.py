"""Servers that listen, with models and runs of their own."""

from __future__ import annotations

import contextlib
import re
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path

import httpx
import pytest
import uvicorn

from ditlab.pipelines import Pipeline
from ditlab.playground.api import Served, build_app

Listening = Callable[..., AbstractContextManager[str]]


@contextlib.contextmanager
def listening_server(served: Served) -> Iterator[str]:
    """The address of an API without a page, in this process."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    server = uvicorn.Server(uvicorn.Config(build_app(served), "127.0.0.1", port, log_level="error"))
    thread = threading.Thread(target=server.run)
    thread.start()
    until = time.monotonic() + 30
    while not server.started and time.monotonic() < until:
        time.sleep(0.02)
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        server.should_exit = True
        thread.join()
        served.close()


@pytest.fixture(scope="session")
def listening() -> Listening:
    return listening_server


@pytest.fixture(scope="session")
def playing(process: Callable[..., subprocess.Popen[str]]) -> Callable[..., AbstractContextManager[str]]:
    """The address of `ditlab play ARGUMENTS`, a process of its own, page and all."""

    @contextlib.contextmanager
    def play(*arguments: object, cwd: Path | None = None) -> Iterator[str]:
        running, said = process("play", *arguments, "--port", 0, cwd=cwd), list[str]()
        assert running.stdout is not None
        assert running.stderr is not None
        reader = threading.Thread(target=said.extend, args=(running.stderr,))  # a program whose pipe is full waits
        reader.start()
        try:
            found = re.search(r"http://[\d.:]+", running.stdout.readline())
            assert found, said
            until = time.monotonic() + 60
            while True:
                with contextlib.suppress(httpx.ConnectError):
                    if httpx.get(f"{found[0]}/health").status_code == 200:
                        break
                assert time.monotonic() < until
                time.sleep(0.05)
            yield found[0]
            running.terminate()
            assert running.wait(60) == 0, said
        finally:
            running.kill()
            running.wait()
            reader.join()
            for pipe in (running.stdout, running.stderr):
                pipe.close()

    return play


@pytest.fixture(scope="module")
def model(digits_run: Path) -> Pipeline:
    return Pipeline.load(digits_run)


@pytest.fixture
def runs(tmp_path: Path, digits_run: Path) -> Path:
    """A folder with one finished run, digits."""
    shutil.copytree(digits_run, tmp_path / "runs" / "digits")
    return tmp_path / "runs"
