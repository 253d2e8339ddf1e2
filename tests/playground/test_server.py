"""``ditlab play``: listening, shutdown on a signal, and errors of its options."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from pathlib import Path
from queue import Queue

import httpx
import pytest
import torch

from ditlab.pipelines import Pipeline
from ditlab.playground.served import Limits, ModelServer
from ditlab.playground.server import SIGNALS, serve

Refused = Callable[..., str]
WAIT = 60  # seconds until a test fails


@pytest.fixture
def handlers() -> Iterator[None]:
    """Restore this process's signal handlers."""
    saved = {name: signal.getsignal(name) for name in SIGNALS}
    yield
    for name, handler in saved.items():
        signal.signal(name, handler)


def generate_and_stop(line: str, stop: Callable[[], object]) -> str:
    """Stop a server while it generates images; they must arrive. Returns the server's address."""
    found, until = re.search(r"http://[\d.:]+", line), time.monotonic() + WAIT
    assert found, line
    body = {"prompt": "1", "n": 8, "steps": 1000, "sampler": "ddpm"}
    with ThreadPoolExecutor(1) as thread, contextlib.ExitStack() as stack:
        stack.callback(stop)
        client = stack.enter_context(httpx.Client(base_url=found[0], timeout=WAIT))
        while True:
            with contextlib.suppress(httpx.ConnectError):
                assert client.get("/health").json() == {"status": "ok"}
                break
            time.sleep(0.02)
        assert client.get("/config").json()["title"] == "ditlab"  # the page's
        response = thread.submit(httpx.post, f"{found[0]}/v1/images/generations", json=body, timeout=WAIT)
        while 'ditlab_images_under_way{model="digits"} 8.0' not in client.get("/metrics").text:
            assert time.monotonic() < until
    assert response.result().status_code == 200
    assert len(response.result().json()["data"]) == 8
    return found[0]


def test_sigterm_ends_the_process_after_accepted_requests(
    process: Callable[..., subprocess.Popen[str]], digits_run: Path
):
    running = process("play", digits_run, "--port", 0, "--max-steps", 1000)
    try:
        assert running.stdout is not None
        address = generate_and_stop(running.stdout.readline(), running.terminate)
        _, errors = running.communicate(timeout=30)
        assert (running.returncode, errors) == (0, "")
    finally:
        running.kill()
        running.communicate()
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"{address}/health")


@pytest.mark.usefixtures("handlers")
def test_sigint_ends_the_server_after_accepted_requests(digits_run: Path):
    lines: Queue[str] = Queue()
    with ThreadPoolExecutor(1) as thread:
        client = thread.submit(
            lambda: generate_and_stop(lines.get(timeout=WAIT), lambda: os.kill(os.getpid(), signal.SIGINT))
        )
        limits, device = Limits(steps=1000), torch.device("cpu")
        serve([str(digits_run)], digits_run.parent, device, "127.0.0.1", 0, limits, 64, lines.put)
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"{client.result()}/health")


def test_an_address_for_other_machines_needs_a_key(refused: Refused, digits_run: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("DITLAB_API_KEY", raising=False)
    refused(["play", digits_run, "--host", "0.0.0.0"], "0.0.0.0", "DITLAB_API_KEY")


def test_errors_are_one_line(refused: Refused, digits_run: Path):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        refused(["play", digits_run, "--port", taken.getsockname()[1]], "cannot listen", "--port")
    refused(["play", digits_run, "--port", 99999], "cannot listen", "--port")
    refused(["play", digits_run, digits_run], "two models have the name digits")
    refused(["play", "runs/none"], "no model in")
    refused(["play", digits_run, "--max-images", 0], "--max-images 0")
    for origin in ("example.org", "https://example.org/", "ftp://x", "https://", "*.example.org"):
        refused(
            ["play", digits_run, "--cors", f"https://a.example,{origin}"], f"--cors {origin}", "https://example.org"
        )
    refused(["play", digits_run, "--batch", 4], "--batch 4", "--max-images")


def test_small_responses_are_not_delayed(model: Pipeline, listening: Callable[..., AbstractContextManager[str]]):
    """Nagle's algorithm would delay them by 40 ms."""
    with listening(ModelServer({"digits": model}, Limits())) as address, httpx.Client() as client:
        seconds = []
        for _ in range(21):
            started = time.perf_counter()
            client.get(f"{address}/health")
            seconds.append(time.perf_counter() - started)
    assert sorted(seconds)[10] < 0.02
