"""The HTTP API, called by clients over a socket."""

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
from ditlab.playground.schema import GenerationRequest
from ditlab.playground.served import Limits, ModelServer

Listening = Callable[..., AbstractContextManager[str]]
LIMITS = Limits(images=8, steps=60, timeout=20)


@pytest.fixture(scope="module")
def address(model: Pipeline, listening: Listening) -> Iterator[str]:
    with listening(ModelServer({"digits": model}, LIMITS)) as found:
        yield found


def images(answer: dict) -> np.ndarray:
    decoded = [Image.open(io.BytesIO(base64.b64decode(image["b64_json"]))) for image in answer["data"]]
    return np.stack([np.asarray(image) for image in decoded])


def ask(address: str, **body: object) -> httpx.Response:
    headers = {"Content-Type": "application/json"}
    return httpx.post(f"{address}/v1/images/generations", content=json.dumps(body), headers=headers, timeout=60)


def test_the_openai_client_generates_images(address: str, model: Pipeline):
    client = openai.OpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0)
    assert [each.id for each in client.models.list()] == ["digits"]
    made = client.images.generate(
        model="digits", prompt="3, 8", n=4, response_format="b64_json", extra_body={"seed": 7, "guidance": 1.5, "steps": 4}
    )  # fmt: skip
    found = images(made.to_dict())
    expected = model.sample(["3", "8"], seed=7, guidance=1.5, steps=4, count=4)[..., 0]
    assert np.abs(found.astype(int) - expected).max() <= 1
    with pytest.raises(openai.NotFoundError, match="unknown model 'dall-e-3'; available: digits"):
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


def test_a_random_seed_is_returned_and_reproduces_the_images(address: str):
    first = ask(address, prompt="5", steps=3).json()
    again = ask(address, prompt="5", steps=3, seed=first["seed"]).json()
    assert first["data"] == again["data"]
    assert first["labels"] == ["5"]


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ({"prompt": "cat"}, "prompt 'cat' names no class of this model; known: 0, 1, 2, 3"),
        ({"prompt": "3 or 8"}, "names 2 classes (3, 8)"),
        ({"prompt": "3, cat"}, "unknown label 'cat'"),
        ({"prompt": "3", "n": 9}, "at most 8"),
        ({"prompt": "3", "n": 0}, "n: "),
        ({"prompt": "3", "n": 10**30}, "n"),
        ({"prompt": "3", "size": "1024x1024"}, "generates 8x8"),
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
        ({"prompt": "3", "seed": 1.5}, "seed: 1.5 is not a whole number"),
        ({"prompt": "3", "seed": "7"}, "seed: '7' is not a whole number"),
        ({"prompt": "3", "seed": True}, "seed: True is not a whole number"),
        ({"prompt": "3", "steps": 2.5}, "steps: 2.5 is not a whole number"),
        ({"prompt": "3", "guidanc": 2}, "unknown field 'guidanc'; did you mean 'guidance'?"),
        ({"prompt": "3", "guidance_scale": 2}, "unknown field 'guidance_scale'; did you mean 'guidance'?"),
        ({"prompt": "3", "num_inference_steps": 2}, "unknown field 'num_inference_steps'; did you mean 'steps'?"),
        ({"prompt": "3", "x" * 5000: 2}, "unknown field 'xxx"),
        ({"prompt": "3", "output_format": "gif"}, "output_format: Input should be 'png', 'webp' or 'jpeg'"),
        ({"prompt": "3", "output_compression": 50}, "png is lossless"),
        ({"prompt": "3", "output_compression": 101, "output_format": "webp"}, "output_compression"),
        ({"prompt": "3", "background": "transparent"}, "background"),
        ({"prompt": "3", "partial_images": 2}, "partial_images needs stream"),
        ({"prompt": "3", "partial_images": 4, "stream": True}, "partial_images"),
        ({"prompt": "3", "stream": True, "n": 2}, "stream returns one image, n is 2"),
        ({"prompt": "cat", "stream": True}, "names no class"),
        ({"prompt": "3", "negative_prompt": "cat"}, "prompt 'cat' names no class"),
        ({"prompt": "3", "negative_prompt": "1, 2"}, "negative '1, 2' must name one class"),
        ({"prompt": "3", "negative": "2"}, "unknown field 'negative'; did you mean 'negative_prompt'?"),
        ({"prompt": "3", "prompts": ["2"]}, "unknown field 'prompts'; did you mean 'prompt'?"),
        ({"prompt": "3", "response_format": "url"}, "response_format"),
        ({"prompt": "3" * 10_000}, "names no class"),
        ({"prompt": "3" * 10_001}, "prompt: a text of 10,001 characters is too long; at most 10,000"),
        ({"prompt": ["3", "3" * 10_001]}, "prompt: a text of 10,001 characters is too long"),
        ({"prompt": [["3"]]}, "prompt: ['3'] is no text"),
        ({"prompt": 3}, "prompt: 3 is no text"),
        ({"prompt": ["3"] * 9}, "n 9 is too many"),
        ({"prompt": "\ud800"}, "prompt: half of a surrogate pair is no character"),
        ({"\ud800": 1}, "unicode"),
        ({"model": "\ud800"}, "model"),
        ({"labels": ["\ud800"]}, "labels"),
        ({"prompt": "<script>alert()</script>"}, "'<script>alert()</script>' names no class"),
        ({"prompt": "3", "model": "../../etc/passwd"}, "unknown model"),
    ],
)
def test_invalid_requests_are_refused_with_the_reason(address: str, body: dict[str, object], words: str):
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
def test_malformed_bodies_are_refused(address: str, content: bytes):
    answer = httpx.post(
        f"{address}/v1/images/generations", content=content, headers={"Content-Type": "application/json"}
    )
    assert answer.status_code == 400
    assert len(answer.json()["error"]["message"]) > 10


def test_a_disconnected_client_cancels_its_request(model: Pipeline, listening: Listening):
    server = ModelServer({"digits": model}, Limits(images=8, steps=1000, timeout=60))
    body = {"prompt": "1", "n": 8, "steps": 1000, "sampler": "ddpm"}
    with listening(server) as address:
        with pytest.raises(httpx.ReadTimeout):
            httpx.post(f"{address}/v1/images/generations", json=body, timeout=0.3)
        until = time.monotonic() + 20
        while server.batchers["digits"].load != (0, 0) and time.monotonic() < until:
            time.sleep(0.05)
        assert server.batchers["digits"].load == (0, 0)
        assert server.batchers["digits"].generated == 0
        assert ask(address, prompt="1", steps=2).status_code == 200


def test_a_server_with_a_key_requires_it(model: Pipeline, listening: Listening):
    with listening(ModelServer({"digits": model}, LIMITS, key="s3cret")) as address:
        assert ask(address, prompt="3", steps=2).status_code == 401
        assert httpx.get(f"{address}/v1/models").status_code == 401
        assert httpx.get(f"{address}/v1/models", headers={"Authorization": "Bearer s3cret"}).status_code == 200
        assert httpx.get(f"{address}/v1/models", headers={"Authorization": "Bearer s3creT"}).status_code == 401
        assert httpx.get(f"{address}/health").json() == {"status": "ok"}


def test_a_full_queue_returns_429_with_retry_after(model: Pipeline, listening: Listening):
    with (
        listening(ModelServer({"digits": model}, LIMITS, max_images=1, max_queue=1)) as address,
        ThreadPoolExecutor(8) as clients,
    ):
        answers = list(clients.map(lambda seed: ask(address, prompt="1", seed=seed, steps=30), range(8)))
    counts = {status: [answer.status_code for answer in answers].count(status) for status in (200, 429)}
    assert counts[200] >= 2
    assert counts[429] >= 1
    assert counts[200] + counts[429] == 8
    refused = next(answer for answer in answers if answer.status_code == 429)
    assert int(refused.headers["Retry-After"]) >= 1


def test_a_slow_request_times_out(model: Pipeline, listening: Listening):
    with listening(ModelServer({"digits": model}, Limits(timeout=0.05))) as address:
        answer = ask(address, prompt="1", n=16, steps=250)
        assert answer.status_code == 503
        assert answer.json()["error"]["code"] == "timeout"


def test_the_limit_of_steps_applies_to_a_models_default_too(model: Pipeline, listening: Listening):
    with listening(ModelServer({"digits": model}, Limits(steps=1))) as address:  # its default is two
        found = images(ask(address, prompt="4", seed=2).json())
    expected = model.sample(["4"], seed=2, steps=1)[..., 0]
    assert np.abs(found.astype(int) - expected).max() <= 1


def test_an_internal_error_has_the_format_of_openais_errors(
    model: Pipeline, listening: Listening, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(model.network, "forward", lambda *parts: 1 / 0)
    with listening(ModelServer({"digits": model}, LIMITS)) as address:
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


def test_the_schema_lists_all_endpoints(address: str):
    schema = httpx.get(f"{address}/openapi.json").json()
    assert set(schema["paths"]) == {"/v1/images/generations", "/v1/models", "/v1/models/{model}", "/health", "/metrics"}
    assert json.dumps(schema)


def test_replacing_a_model_file_does_not_change_the_served_model(runs: Path, listening: Listening):
    with listening(ModelServer({"digits": find_model(runs / "digits")}, LIMITS)) as address:
        before = ask(address, prompt="3", seed=1, steps=4).json()["data"]
        other = Pipeline.load(runs / "digits")
        torch.nn.init.normal_(other.network.final_layer.linear.weight)  # type: ignore[attr-defined]
        other.save(runs / "digits")  # as training does: renamed over the old file
        assert ask(address, prompt="3", seed=1, steps=4).json()["data"] == before
        (runs / "digits" / "model.safetensors").write_bytes(b"no model")  # a file written in place
        assert ask(address, prompt="3", seed=1, steps=4).json()["data"] == before


def test_a_prompt_may_name_a_class_with_commas(model: Pipeline):
    names = ["tench, Tinca tinca", *model.names[1:]]
    fish = Pipeline(model.network, model.diffusion, model.autoencoder, names, model.defaults)
    server = ModelServer({"fish": fish}, Limits())
    try:
        _, _, request = server.build_request(GenerationRequest(prompt="3, tench, tinca tinca", n=2))
        assert request.labels.tolist() == [3, 0]
    finally:
        server.close()
