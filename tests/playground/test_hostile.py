"""Malicious clients: every request is refused or harmless, and the server still responds."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import httpx
import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error

from ditlab.pipelines import Pipeline
from ditlab.playground.served import Limits, ModelServer

SLOW = (HealthCheck.too_slow, HealthCheck.filter_too_much, HealthCheck.data_too_large)
Listening = Callable[..., AbstractContextManager[str]]

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # inside gradio


@pytest.fixture(scope="module")
def address(model: Pipeline, digits_run: Path, listening: Listening) -> Iterator[str]:
    models = ModelServer({"digits": model}, Limits(images=8, steps=20, timeout=20))
    with listening(models, {"digits": str(digits_run)}, digits_run.parent) as found:
        yield found
        assert httpx.get(f"{found}/health").json() == {"status": "ok"}
        body = {"prompt": "3", "seed": 1, "steps": 2}
        assert httpx.post(f"{found}/v1/images/generations", json=body).status_code == 200


@pytest.mark.parametrize("mode", GenerationMode)
def test_requests_that_fit_the_schema_or_not_get_a_response(address: str, mode: GenerationMode):
    """schemathesis generates both kinds."""
    schema = schemathesis.openapi.from_url(f"{address}/openapi.json")
    statuses = dict[str, set[int]]()
    for result in schema.get_all_operations():
        operation: Any = result.ok()  # type: ignore[union-attr]
        if mode is GenerationMode.NEGATIVE and operation.method != "post":
            continue  # it has no parameters

        @given(case=operation.as_strategy(generation_mode=mode))
        @settings(max_examples=150, deadline=None, database=None, derandomize=True, suppress_health_check=SLOW)
        def call(case: schemathesis.Case) -> None:
            response = case.call(timeout=30)
            case.validate_response(response, checks=[not_a_server_error])
            statuses.setdefault(case.path, set()).add(response.status_code)

        call()
    assert statuses["/v1/images/generations"] <= {200, 400, 404}
    assert 400 in statuses["/v1/images/generations"]
    if mode is GenerationMode.POSITIVE:
        assert statuses["/v1/models"] == statuses["/health"] == statuses["/metrics"] == {200}


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
def test_no_file_of_the_machine_is_served(address: str, digits_run: Path, path: str):
    with socket.create_connection((address.split("//")[1].split(":")[0], int(address.rsplit(":", 1)[1]))) as raw:
        raw.sendall(f"GET {path.format(run=digits_run)} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode())
        answer = b"".join(iter(lambda: raw.recv(65536), b""))
    assert int(answer.split()[1]) in (400, 401, 403, 404, 405), answer[:200]
    assert b"root:" not in answer
    assert b'"network"' not in answer


def read_events(address: str, session: str) -> list[dict]:
    """The events that the server sends to a page."""
    with httpx.stream("GET", f"{address}/gradio_api/queue/data?session_hash={session}", timeout=60) as stream:
        lines = [line.removeprefix("data: ") for line in stream.iter_lines() if line.startswith("data: ")]
    return [json.loads(line) for line in lines]


@pytest.mark.parametrize(
    "value", ["../../etc/passwd", -1, 10**30, "NaN", None, [[]], {"path": "/etc/passwd"}, "x" * 10**5]
)
def test_values_outside_a_components_range_are_refused(address: str, value: object):
    """The page's events, sent without the page."""
    session, sent = f"hostile-{abs(hash(str(value)))}", 0
    for event in httpx.get(f"{address}/config").json()["dependencies"]:
        if not event["backend_fn"] or not event["inputs"]:
            continue
        body = {
            "fn_index": event["id"], "session_hash": session, "data": [value] * len(event["inputs"]), "trigger_id": None,
            "event_data": {"index": value, "value": value},
        }  # fmt: skip
        answer = httpx.post(f"{address}/gradio_api/queue/join", json=body, timeout=30)
        assert answer.status_code == 200, (event["targets"], answer.text)
        sent += 1
    answers = read_events(address, session)
    ended = [answer for answer in answers if answer["msg"] == "process_completed"]
    assert len(ended) == sent
    assert "root:" not in json.dumps(answers)
    assert not all(answer["success"] for answer in ended)
    assert httpx.get(f"{address}/health").status_code == 200


def test_uploaded_files_are_not_opened(address: str):
    pickled = b"\x80\x04\x95cbuiltins\neval\n."
    answer = httpx.post(f"{address}/gradio_api/upload", files={"files": ("model.pt", pickled)})
    assert answer.status_code in (200, 403, 404)  # stored in the page's cache, never opened
    large = httpx.post(f"{address}/gradio_api/upload", files={"files": ("large.bin", b"0" * 2_000_000)})
    assert large.status_code == 413
    body = {"model": "/tmp/model.pt", "prompt": "3"}
    assert httpx.post(f"{address}/v1/images/generations", json=body).status_code == 404


def test_slow_clients_do_not_block_others(address: str):
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


def metric(address: str, name: str) -> float:
    """One of the server's metrics."""
    lines = httpx.get(f"{address}/metrics").text.splitlines()
    return next((float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith(name)), 0.0)


def test_requests_of_disconnected_clients_are_cancelled(model: Pipeline, listening: Listening):
    with listening(ModelServer({"digits": model}, Limits(steps=1000, timeout=600))) as address:
        body = b'{"prompt": "1", "n": 8, "steps": 1000, "sampler": "ddpm"}'
        head = "POST /v1/images/generations HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
        head += f"Content-Length: {len(body)}\r\n\r\n"
        host, port = address.split("//")[1].split(":")
        clients = [socket.create_connection((host, int(port))) for _ in range(16)]
        for client in clients:
            client.sendall(head.encode() + body)
        until = time.monotonic() + 60
        while metric(address, "ditlab_images_under_way") < 64:  # as many as are denoised together; others wait
            assert time.monotonic() < until
            time.sleep(0.02)
        for client in clients:
            client.close()
        while metric(address, 'ditlab_requests_total{status="499"}') < 16:
            assert time.monotonic() < until
            time.sleep(0.05)
        assert metric(address, "ditlab_images_under_way") == 0
        assert metric(address, "ditlab_images_total") == 0


@pytest.mark.parametrize("chunked", [False, True])
def test_large_bodies_are_not_read(address: str, chunked: bool):
    def parts() -> Iterator[bytes]:
        for _ in range(1000):
            yield b" " * 1000

    content = parts() if chunked else b" " * 1_000_000
    answer = httpx.post(
        f"{address}/v1/images/generations", content=content, headers={"Content-Type": "application/json"}
    )
    assert answer.status_code == 413
    assert "larger than 262,144 bytes" in answer.json()["error"]["message"]
    answer = httpx.post(f"{address}/v1/images/generations", json={"labels": ["ab" * 500]})
    assert answer.status_code == 400
    assert len(answer.text) < 400
