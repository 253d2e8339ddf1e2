"""``ditlab play`` as a person runs it: a program that listens, and ends well."""

from __future__ import annotations

import re
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path

import httpx
import pytest

Refused = Callable[..., str]


@pytest.fixture
def server(
    process: Callable[..., subprocess.Popen[str]], digits_run: Path
) -> Iterator[tuple[subprocess.Popen[str], str]]:
    running = process("play", digits_run, "--port", 0, "--steps", 1000)
    assert running.stdout is not None
    line = running.stdout.readline()
    found = re.search(r"http://[\d.:]+", line)
    assert found, line
    yield running, found[0]
    running.kill()
    running.communicate()


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGINT])
def test_what_was_taken_is_finished_when_the_server_is_told_to_end(
    server: tuple[subprocess.Popen[str], str], how: signal.Signals
):
    running, address = server
    until = time.monotonic() + 30
    while time.monotonic() < until:
        try:
            assert httpx.get(f"{address}/health").json() == {"status": "ok"}
            break
        except httpx.ConnectError:
            time.sleep(0.05)
    answers: list[httpx.Response] = []
    body = {"prompt": "1", "n": 8, "steps": 1000, "sampler": "ddpm"}
    client = threading.Thread(
        target=lambda: answers.append(httpx.post(f"{address}/v1/images/generations", json=body, timeout=60))
    )
    client.start()
    while 'ditlab_images_under_way{model="digits"} 8.0' not in httpx.get(f"{address}/metrics").text:
        assert time.monotonic() < until
    running.send_signal(how)
    client.join()
    assert answers[0].status_code == 200
    assert len(answers[0].json()["data"]) == 8
    _, said = running.communicate(timeout=30)
    assert (running.returncode, said) == (0, "")
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"{address}/health")


def test_an_address_for_others_needs_a_key(refused: Refused, digits_run: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("DITLAB_API_KEY", raising=False)
    refused(["play", digits_run, "--host", "0.0.0.0"], "0.0.0.0", "DITLAB_API_KEY")


def test_what_cannot_be_served_is_said_in_one_line(refused: Refused, digits_run: Path):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        refused(["play", digits_run, "--port", taken.getsockname()[1]], "cannot listen", "--port")
    refused(["play", digits_run, "--port", 99999], "cannot listen", "--port")
    refused(["play", digits_run, digits_run], "two models are called digits")
    refused(["play", "runs/none"], "no model in")
    refused(["play", digits_run, "--images", 0], "--images 0")
    refused(["play", digits_run, "--together", 4], "--together 4", "--images")


def test_answers_are_sent_at_once(digits_run: Path, playing: Callable[..., AbstractContextManager[str]]):
    """Not after the 40 ms for which Nagle's algorithm would hold them back."""
    with playing(digits_run) as address, httpx.Client() as client:
        seconds = []
        for _ in range(21):
            began = time.perf_counter()
            client.get(f"{address}/health")
            seconds.append(time.perf_counter() - began)
    assert sorted(seconds)[10] < 0.02
