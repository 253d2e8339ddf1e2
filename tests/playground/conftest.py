"""Servers in this process, with models and runs of their own."""

from __future__ import annotations

import contextlib
import shutil
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from ditlab.pipelines import Pipeline
from ditlab.playground.api import build_app
from ditlab.playground.backend import Backend
from ditlab.playground.served import ModelServer
from ditlab.playground.server import Server, bind, build_page_app

Listening = Callable[..., AbstractContextManager[str]]


@contextlib.contextmanager
def listening_server(
    models: ModelServer, sources: dict[str, str] | None = None, runs: Path = Path(), cors: tuple[str, ...] = ()
) -> Iterator[str]:
    """The address of an API, with the page if the sources of its models are given."""
    with ThreadPoolExecutor(1) as thread:  # playwright has an event loop in this one
        page = None if sources is None else Backend(models, sources, runs)
        app = build_app(models, cors) if page is None else thread.submit(build_page_app, models, page, cors).result()
    listener: socket.socket = bind("127.0.0.1", 0)
    server = Server(app, models)
    thread = threading.Thread(target=server.run, args=([listener],))
    thread.start()
    until = time.monotonic() + 30
    while not server.started and time.monotonic() < until:
        time.sleep(0.01)
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join()
        models.close()
        listener.close()


@pytest.fixture(scope="session")
def listening() -> Listening:
    return listening_server


@pytest.fixture(scope="module")
def model(digits_run: Path) -> Pipeline:
    return Pipeline.load(digits_run)


@pytest.fixture
def runs(tmp_path: Path, digits_run: Path) -> Path:
    """A folder with one finished run, digits."""
    shutil.copytree(digits_run, tmp_path / "runs" / "digits")
    return tmp_path / "runs"
