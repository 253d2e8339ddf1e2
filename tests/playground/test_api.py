"""The HTTP API, with a server that listens and clients that call it."""

from __future__ import annotations

import base64
import io
import json
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from pathlib import Path

import httpx
import numpy as np
import openai
import pytest
import torch
from PIL import Image

from ditlab.diffusion import GuidanceConfig
from ditlab.interop.find import find_model
from ditlab.pipelines import Pipeline
from ditlab.playground.api import Limits, Served

Listening = Callable[..., AbstractContextManager[str]]
LIMITS = Limits(images=8, steps=60, seconds=20)


@pytest.fixture(scope="module")
def address(model: Pipeline, listening: Listening) -> Iterator[str]:
    with listening(Served({"digits": model}, LIMITS)) as found:
        yield found


def images(answer: dict) -> np.ndarray:
    decoded = [Image.open(io.BytesIO(base64.b64decode(image["b64_json"]))) for image in answer["data"]]
    return np.stack([np.asarray(image) for image in decoded])


def ask(address: str, **body: object) -> httpx.Response:
    return httpx.post(f"{address}/v1/images/generations", json=body, timeout=60)


def test_the_openai_client_generates_images(address: str, model: Pipeline):
    client = openai.OpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0)
    assert [each.id for each in client.models.list()] == ["digits"]
    made = client.images.generate(
        model="digits", prompt="3, 8", n=4, response_format="b64_json", extra_body={"seed": 7, "guidance": 1.5, "steps": 4}
    )  # fmt: skip
    found = images(made.to_dict())
    expected = model.sample(["3", "8"], seed=7, guidance=1.5, steps=4, count=4)[..., 0]
    assert np.abs(found.astype(int) - expected).max() <= 1
    with pytest.raises(openai.NotFoundError, match="no model 'dall-e-3'; there are digits"):
        client.images.generate(model="dall-e-3", prompt="3")


def test_each_client_gets_the_images_of_its_own_seed(address: str, model: Pipeline):
    def one(seed: int) -> bool:
        answer = ask(address, prompt=str(seed % 10), n=1, seed=seed, steps=3).json()
        expected = model.sample([seed % 10], seed=seed, steps=3, count=1)[..., 0]
        return answer["seed"] == seed and bool(np.abs(images(answer).astype(int) - expected).max() <= 1)

    with ThreadPoolExecutor(16) as clients:
        assert all(clients.map(one, range(48)))


def test_labels_may_be_a_list_and_guidance_an_interval(address: str, model: Pipeline):
    body = {"labels": [4, "2"], "n": 2, "seed": 3, "steps": 6, "guidance": 3, "guidance_low": 0.2, "guidance_high": 0.6}
    answer = ask(address, **body).json()
    guided = GuidanceConfig(3, low=0.2, high=0.6)
    expected = model.sample([4, 2], guidance=guided, steps=6, seed=3)[..., 0]
    assert np.abs(images(answer).astype(int) - expected).max() <= 1
    assert answer["labels"] == ["4", "2"]
    whole = model.sample([4, 2], guidance=3, steps=6, seed=3)[..., 0]
    assert np.abs(expected.astype(int) - whole).max() > 1


def test_a_seed_that_is_drawn_is_told_and_gives_the_images_again(address: str):
    first = ask(address, prompt="5", steps=3).json()
    again = ask(address, prompt="5", steps=3, seed=first["seed"]).json()
    assert first["data"] == again["data"]
    assert first["labels"] == ["5"]


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ({"prompt": "cat"}, "unknown label 'cat'"),
        ({"prompt": "3", "n": 9}, "at most 8"),
        ({"prompt": "3", "n": 0}, "n: "),
        ({"prompt": "3", "n": 10**30}, "n"),
        ({"prompt": "3", "size": "1024x1024"}, "makes 8x8"),
        ({"prompt": "3", "steps": 61}, "at most 60"),
        ({"prompt": "3", "steps": 0}, "steps"),
        ({"prompt": "3", "sampler": "magic"}, "ddpm, ddim"),
        ({"prompt": "3", "guidance": -1}, "guidance"),
        ({"prompt": "3", "guidance": 1e300}, "guidance"),
        ({"prompt": "3", "guidance_low": 0.7, "guidance_high": 0.2}, "interval"),
        ({"prompt": "3", "guidance_high": 1.5}, "guidance_high"),
        ({"labels": [10]}, "label 10 is out of range"),
        ({"labels": [None]}, "labels"),
        ({"labels": ["3"] * 1001}, "labels"),
        ({"prompt": "3", "seed": -1}, "seed"),
        ({"prompt": "3", "response_format": "url"}, "response_format"),
        ({"prompt": "3" * 1001}, "prompt"),
        ({"prompt": ["3"]}, "prompt"),
        ({"prompt": "<script>alert(1)</script>"}, "unknown label"),
        ({"prompt": "3", "model": "../../etc/passwd"}, "no model"),
    ],
)
def test_what_cannot_be_is_refused_with_the_reason(address: str, body: dict[str, object], words: str):
    answer = ask(address, **body)
    assert answer.status_code in (400, 404)
    error = answer.json()["error"]
    assert words in error["message"]
    assert len(error["message"]) < 400
    assert error["type"] == "invalid_request_error"


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"null",
        b"[]",
        b'{"prompt": "3", "guidance": NaN}',
        b"\xff\xfe",
        b'"' * 5000,
        b'{"prompt": "\xff"}',
        b"[" * 9999,
        b'{"n": 1' + b"0" * 5000 + b"}",
    ],
)
def test_bodies_that_are_no_requests_are_refused(address: str, content: bytes):
    answer = httpx.post(
        f"{address}/v1/images/generations", content=content, headers={"Content-Type": "application/json"}
    )
    assert answer.status_code == 400
    assert len(answer.json()["error"]["message"]) > 10


def test_a_client_that_goes_away_is_not_waited_for(model: Pipeline, listening: Listening):
    served = Served({"digits": model}, Limits(images=8, steps=1000, seconds=60))
    body = {"prompt": "1", "n": 8, "steps": 1000, "sampler": "ddpm"}
    with listening(served) as address:
        with pytest.raises(httpx.ReadTimeout):
            httpx.post(f"{address}/v1/images/generations", json=body, timeout=0.3)
        until = time.monotonic() + 20
        while served.batchers["digits"].load != (0, 0) and time.monotonic() < until:
            time.sleep(0.05)
        assert served.batchers["digits"].load == (0, 0)
        assert served.batchers["digits"].made == 0
        assert ask(address, prompt="1", steps=2).status_code == 200


def test_a_key_is_asked_for_where_there_is_one(model: Pipeline, listening: Listening):
    with listening(Served({"digits": model}, LIMITS, key="s3cret")) as address:
        assert ask(address, prompt="3", steps=2).status_code == 401
        assert httpx.get(f"{address}/v1/models").status_code == 401
        assert httpx.get(f"{address}/v1/models", headers={"Authorization": "Bearer s3cret"}).status_code == 200
        assert httpx.get(f"{address}/v1/models", headers={"Authorization": "Bearer s3creT"}).status_code == 401
        assert httpx.get(f"{address}/health").json() == {"status": "ok"}


def test_too_many_requests_are_sent_away_with_the_time_to_come_again(model: Pipeline, listening: Listening):
    with listening(Served({"digits": model}, LIMITS, most=1, waiting=1)) as address, ThreadPoolExecutor(8) as clients:
        answers = list(clients.map(lambda seed: ask(address, prompt="1", seed=seed, steps=30), range(8)))
    counts = {status: [answer.status_code for answer in answers].count(status) for status in (200, 429)}
    assert counts[200] >= 2
    assert counts[429] >= 1
    assert counts[200] + counts[429] == 8
    sent_away = next(answer for answer in answers if answer.status_code == 429)
    assert int(sent_away.headers["Retry-After"]) >= 1


def test_what_takes_too_long_is_given_up(model: Pipeline, listening: Listening):
    with listening(Served({"digits": model}, Limits(seconds=0.05))) as address:
        answer = ask(address, prompt="1", n=16, steps=250)
        assert answer.status_code == 503
        assert answer.json()["error"]["code"] == "timeout"


def test_a_models_own_steps_are_held_to_the_limit_too(model: Pipeline, listening: Listening):
    with listening(Served({"digits": model}, Limits(steps=1))) as address:  # two are its own
        found = images(ask(address, prompt="4", seed=2).json())
    expected = model.sample(["4"], seed=2, steps=1)[..., 0]
    assert np.abs(found.astype(int) - expected).max() <= 1


def test_a_server_that_fails_says_so_in_the_clients_shape(
    model: Pipeline, listening: Listening, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(model.network, "forward", lambda *parts: 1 / 0)
    with listening(Served({"digits": model}, LIMITS)) as address:
        answer = ask(address, prompt="1", steps=2)
        assert answer.status_code == 500
        assert "ZeroDivisionError" in answer.json()["error"]["message"]
        assert httpx.get(f"{address}/health").status_code == 200


def test_metrics_count(address: str):
    ask(address, prompt="1", n=2, steps=2)
    text = httpx.get(f"{address}/metrics").text
    rows = dict(line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#"))
    assert float(rows['ditlab_images_total{model="digits"}']) >= 2
    assert float(rows['ditlab_requests_total{status="200"}']) >= 1
    assert float(rows['ditlab_waiting_requests{model="digits"}']) == 0


def test_the_schema_says_what_the_server_does(address: str):
    schema = httpx.get(f"{address}/openapi.json").json()
    assert set(schema["paths"]) == {"/v1/images/generations", "/v1/models", "/health", "/metrics"}
    assert json.dumps(schema)


def test_a_model_file_that_is_replaced_changes_nothing_that_is_served(runs: Path, listening: Listening):
    with listening(Served({"digits": find_model(runs / "digits")}, LIMITS)) as address:
        before = ask(address, prompt="3", seed=1, steps=4).json()["data"]
        other = Pipeline.load(runs / "digits")
        torch.nn.init.normal_(other.network.final_layer.linear.weight)  # type: ignore[attr-defined]
        other.save(runs / "digits")  # as training does, renamed over what stood
        assert ask(address, prompt="3", seed=1, steps=4).json()["data"] == before
        (runs / "digits" / "model.safetensors").write_bytes(b"no model")  # and one that is being written in place
        assert ask(address, prompt="3", seed=1, steps=4).json()["data"] == before
