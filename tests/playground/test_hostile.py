"""Clients that mean no good: everything is refused or harmless, and the server still answers."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path

import httpx
import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error

Playing = Callable[..., AbstractContextManager[str]]


@pytest.fixture(scope="module")
def address(digits_run: Path, playing: Playing) -> Iterator[str]:
    limits = ("--images", 8, "--steps", 20, "--seconds", 20)
    with playing(digits_run, "--runs", digits_run.parent, *limits) as found:
        yield found
        assert httpx.get(f"{found}/health").json() == {"status": "ok"}
        body = {"prompt": "3", "seed": 1, "steps": 2}
        assert httpx.post(f"{found}/v1/images/generations", json=body).status_code == 200


@pytest.mark.parametrize("mode", GenerationMode)
def test_whatever_the_schema_allows_and_does_not_is_answered(address: str, mode: GenerationMode):
    """schemathesis makes requests that fit the schema, and requests that do not."""
    schema = schemathesis.openapi.from_url(f"{address}/openapi.json")
    answered = dict[str, set[int]]()
    for result in schema.get_all_operations():
        operation = result.ok()
        if mode is GenerationMode.NEGATIVE and operation.method != "post":
            continue  # nothing to get wrong

        @given(case=operation.as_strategy(generation_mode=mode))
        @settings(
            max_examples=150, deadline=None, database=None, derandomize=True, suppress_health_check=[*HealthCheck]
        )
        def call(case: schemathesis.Case) -> None:
            response = case.call(timeout=30)
            case.validate_response(response, checks=[not_a_server_error])
            answered.setdefault(case.path, set()).add(response.status_code)

        call()
    statuses = answered["/v1/images/generations"]
    assert statuses <= {200, 400, 404}
    assert 400 in statuses
    if mode is GenerationMode.POSITIVE:
        assert answered["/v1/models"] == answered["/health"] == answered["/metrics"] == {200}


@pytest.mark.parametrize(
    "path",
    [
        "/gradio_api/file=/etc/passwd",
        "/gradio_api/file=../../../../etc/passwd",
        "/gradio_api/file={run}/recipe.json",
        "/gradio_api/file=%2Fetc%2Fpasswd",
        "/static/../../../etc/passwd",
        "/static/%2e%2e/%2e%2e/etc/passwd",
        "/assets/..%2f..%2f..%2fetc/passwd",
        "/gradio_api/proxy=http://127.0.0.1:1/x",
        "/v1/../../etc/passwd",
    ],
)
def test_no_file_of_the_machine_is_given_out(address: str, digits_run: Path, path: str):
    with socket.create_connection((address.split("//")[1].split(":")[0], int(address.rsplit(":", 1)[1]))) as raw:
        raw.sendall(f"GET {path.format(run=digits_run)} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode())
        answer = b"".join(iter(lambda: raw.recv(65536), b""))
    assert int(answer.split()[1]) in (400, 401, 403, 404, 405), answer[:200]
    assert b"root:" not in answer
    assert b'"network"' not in answer


def events(address: str) -> list[dict]:
    """What the page would call on the server, by number."""
    return httpx.get(f"{address}/config").json()["dependencies"]


@pytest.mark.parametrize(
    "value", ["../../etc/passwd", -1, 10**30, "NaN", None, [[]], {"path": "/etc/passwd"}, "x" * 10**5]
)
def test_values_that_no_control_sends_are_refused(address: str, value: object):
    """The page's own channel, spoken to without the page."""
    session = "hostile"
    for event in events(address):
        if not event["backend_fn"]:
            continue
        body = {
            "fn_index": event["id"], "session_hash": session, "data": [value] * len(event["inputs"]), "trigger_id": None,
            "event_data": {"index": value, "value": value},
        }  # fmt: skip
        answer = httpx.post(f"{address}/gradio_api/queue/join", json=body, timeout=30)
        assert answer.status_code < 500, (event["targets"], answer.text)
    with httpx.stream("GET", f"{address}/gradio_api/queue/data?session_hash={session}", timeout=60) as stream:
        text = "".join(stream.iter_text())
    assert "root:" not in text
    assert httpx.get(f"{address}/health").status_code == 200


def test_files_are_not_taken(address: str):
    pickled = b"\x80\x04\x95cbuiltins\neval\n."
    answer = httpx.post(f"{address}/gradio_api/upload", files={"files": ("model.pt", pickled)})
    assert answer.status_code in (200, 403, 404)  # into the page's own cache, where nothing opens it
    large = httpx.post(f"{address}/gradio_api/upload", files={"files": ("large.bin", b"0" * 2_000_000)})
    assert large.status_code == 413
    body = {"model": "/tmp/model.pt", "prompt": "3"}
    assert httpx.post(f"{address}/v1/images/generations", json=body).status_code == 404


def test_slow_clients_do_not_keep_others_waiting(address: str):
    host, port = address.split("//")[1].split(":")
    slow = [socket.create_connection((host, int(port))) for _ in range(64)]
    for k, client in enumerate(slow):
        client.sendall(b"POST /v1/images/generations HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n{"[: 20 + k])
    began = time.monotonic()
    body = {"prompt": "3", "seed": 1, "steps": 2}
    assert httpx.post(f"{address}/v1/images/generations", json=body, timeout=30).status_code == 200
    assert time.monotonic() - began < 5
    for client in slow:
        client.close()


def test_clients_that_vanish_leave_nothing_behind(address: str):
    body = b'{"prompt": "1", "n": 8, "steps": 20, "sampler": "ddpm"}'
    head = f"POST /v1/images/generations HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {len(body)}"
    host, port = address.split("//")[1].split(":")

    def vanish() -> None:
        with socket.create_connection((host, int(port))) as client:
            client.sendall(head.encode() + b"\r\n\r\n" + body)

    threads = [threading.Thread(target=vanish) for _ in range(32)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    until = time.monotonic() + 30
    while time.monotonic() < until:
        text = httpx.get(f"{address}/metrics").text
        if 'under_way{model="digits"} 0.0' in text and 'waiting_requests{model="digits"} 0.0' in text:
            break
        time.sleep(0.1)
    else:
        raise AssertionError(text)
