"""What the openai client expects of the API, on the server that has the page too."""

from __future__ import annotations

import base64
import io
import json
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import openai
import pytest
from openai.types import ImageGenCompletedEvent, ImageGenPartialImageEvent, Model
from PIL import Image
from specs import image_spec

from ditlab.diffusion import DiffusionConfig, GuidanceConfig
from ditlab.encoders import Autoencoder
from ditlab.models import DiTConfig, build
from ditlab.pipelines import Pipeline, SampleConfig
from ditlab.playground.served import Limits, ModelServer

Listening = Callable[..., AbstractContextManager[str]]
EXIF_DESCRIPTION = 0x010E

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # inside gradio


@pytest.fixture(scope="module")
def server(model: Pipeline) -> ModelServer:
    return ModelServer({"digits": model}, Limits(images=8, steps=1000, timeout=20))


@pytest.fixture(scope="module")
def address(server: ModelServer, digits_run: Path, listening: Listening) -> Iterator[str]:
    """A server with the page, which takes every path that the API does not."""
    with listening(server, {"digits": str(digits_run)}, digits_run.parent, cors=("https://example.org",)) as found:
        yield found


@pytest.fixture(scope="module")
def client(address: str) -> Iterator[openai.OpenAI]:
    with connected(address) as found:
        yield found


def connected(address: str) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0)


def opened(encoded: str | None) -> Image.Image:
    assert encoded
    return Image.open(io.BytesIO(base64.b64decode(encoded)))


def pixels(picture: Image.Image) -> np.ndarray:
    return np.asarray(picture.convert("L")).astype(int)


def settings(picture: Image.Image) -> dict[str, Any]:
    """The settings in an image file."""
    return json.loads(picture.info["ditlab"] if picture.format == "PNG" else picture.getexif()[EXIF_DESCRIPTION])


@pytest.mark.parametrize("count", [0, 1, 3])
def test_a_stream_has_partial_images_and_the_image(client: openai.OpenAI, model: Pipeline, count: int):
    body = {"seed": 4, "steps": 30, "sampler": "euler", "guidance": 1.5}
    stream = client.images.generate(prompt="8", stream=True, partial_images=count, size="8x8", extra_body=body)
    *partial, last = list(stream)
    assert [event.type for event in partial] == ["image_generation.partial_image"] * count
    for index, event in enumerate(partial):
        assert isinstance(event, ImageGenPartialImageEvent)
        ImageGenPartialImageEvent.model_validate(event.to_dict(), strict=True)
        assert event.partial_image_index == index
    assert isinstance(last, ImageGenCompletedEvent)
    ImageGenCompletedEvent.model_validate(last.to_dict(), strict=True)
    assert (last.size, last.output_format, last.background) == ("8x8", "png", "opaque")
    assert last.to_dict()["seed"] == 4
    expected = model.sample([8], seed=4, steps=30, sampler="euler", guidance=1.5)[0, ..., 0].astype(int)
    assert np.abs(pixels(opened(last.b64_json)) - expected).max() <= 1
    states = list(model.states(model.condition([8], 1), 4, 0, configured(model, 30)))
    for event, step in zip(partial, {0: (), 1: (15,), 3: (8, 15, 22)}[count], strict=True):
        x0 = model.decode(states[step - 1].x0)[0, ..., 0].astype(int)
        assert np.abs(pixels(opened(event.b64_json)) - x0).max() <= 1


def configured(model: Pipeline, steps: int) -> SampleConfig:
    return replace(model.defaults, sampler="euler", steps=steps, guidance=GuidanceConfig(1.5))


def test_a_stream_of_fewer_steps_than_partial_images(client: openai.OpenAI):
    stream = client.images.generate(prompt="8", stream=True, partial_images=3, extra_body={"seed": 4, "steps": 1})
    assert [event.type for event in stream] == ["image_generation.completed"]


def test_an_error_during_a_stream_reaches_the_client(model: Pipeline, listening: Listening):
    with (
        listening(ModelServer({"digits": model}, Limits(timeout=0.2, steps=1000))) as address,
        connected(address) as client,
    ):
        body = {"steps": 1000, "sampler": "ddpm"}
        stream = client.images.generate(prompt="8", stream=True, extra_body=body)
        with pytest.raises(openai.APIError, match="not finished within"):
            list(stream)
        with pytest.raises(openai.BadRequestError, match="names no class"):  # before the stream begins
            client.images.generate(prompt="cat", stream=True)


def test_a_client_that_leaves_a_stream_cancels_its_request(server: ModelServer, client: openai.OpenAI):
    batcher = server.batchers["digits"]
    body = {"steps": 1000, "sampler": "ddpm"}
    stream = client.images.generate(prompt="8", stream=True, partial_images=3, extra_body=body)
    assert next(iter(stream)).type == "image_generation.partial_image"
    made = batcher.generated
    stream.close()
    until = time.monotonic() + 20
    while batcher.busy or server.active_requests:
        assert time.monotonic() < until
        time.sleep(0.02)
    assert batcher.generated == made


@pytest.mark.parametrize(
    ("kind", "quality"), [("png", None), ("webp", None), ("webp", 30), ("jpeg", None), ("jpeg", 0)]
)
def test_files_have_their_format_and_their_settings(
    client: openai.OpenAI, model: Pipeline, kind: Any, quality: int | None
):
    given: dict[str, Any] = {} if quality is None else {"output_compression": quality}
    body = {"seed": 3, "steps": 3, "sampler": "heun", "guidance": 2.5}
    made = client.images.generate(prompt="7, 1", n=3, output_format=kind, extra_body=body, **given)
    assert made.output_format == kind
    expected = model.sample([7, 1], seed=3, steps=3, sampler="heun", guidance=2.5, count=3)[..., 0].astype(int)
    for k, each in enumerate(made.data or []):
        picture = opened(each.b64_json)
        assert (picture.format, picture.size) == (kind.upper(), (8, 8))
        found = settings(picture)
        guidance = {"scale": 2.5, "low": 0, "high": 1, "channels": 0}
        wanted = {"model": "digits", "seed": 3, "image": k, "label": "717"[k], "sampler": "heun", "steps": 3}
        assert found == wanted | {
            "label index": int("717"[k]),
            "guidance": guidance,
            "precision": "auto",
            "negative": "",
        }
        error = np.abs(pixels(picture) - expected[k])
        assert error.max() <= 1 if kind == "png" or (kind, quality) == ("webp", None) else error.mean() < 60
    assert len(made.data or []) == 3


def test_a_model_with_transparency_has_no_jpeg(listening: Listening):
    flow = DiffusionConfig(schedule="rectified-flow", target="velocity", learned_variance=False)
    network = build(DiTConfig(depth=1, width=16, heads=2), image_spec(4, 8, 8, 0)).eval()
    icons = Pipeline(network, flow, Autoencoder(4, 4, 1).eval(), defaults=SampleConfig("euler", 2))
    with listening(ModelServer({"icons": icons}, Limits())) as address, connected(address) as client:
        with pytest.raises(
            openai.BadRequestError, match="icons generates images with transparency; use output_format png"
        ):
            client.images.generate(prompt="", output_format="jpeg")
        made = client.images.generate(prompt="", output_format="webp", extra_body={"seed": 1})
    assert made.background == "transparent"
    picture = opened((made.data or [])[0].b64_json)
    assert np.abs(np.asarray(picture).astype(int) - icons.sample(seed=1, count=1)[0])[..., 3].max() <= 1


def test_compression_makes_files_smaller(client: openai.OpenAI):
    def size(kind: Any, quality: int) -> int:
        made = client.images.generate(
            prompt="7", output_format=kind, output_compression=quality, extra_body={"seed": 3, "steps": 3}
        )
        assert made.data
        return len(made.data[0].b64_json or "")

    assert size("jpeg", 5) < size("jpeg", 100)
    assert size("webp", 5) < size("webp", 99)


def test_a_seed_gives_the_image_of_the_command(
    client: openai.OpenAI, digits_run: Path, ditlab: Callable, tmp_path: Path
):
    seed = 2**53 + 1  # not a float
    ended = ditlab("sample", digits_run, "--seed", seed, "--count", 3, "--out", tmp_path / "made", "--no-filmstrip")
    assert ended.code == 0, ended
    by_command = [Image.open(path) for path in sorted((tmp_path / "made").glob("*.png"))]
    made = client.images.generate(n=3, prompt="", extra_body={"seed": seed})
    by_client = [opened(each.b64_json) for each in made.data or []]
    for one, other in zip(by_command, by_client, strict=True):
        assert np.abs(pixels(one) - pixels(other)).max() <= 1
        shared = ("seed", "image", "sampler", "steps", "guidance", "precision")
        assert {name: settings(one)[name] for name in shared} == {name: settings(other)[name] for name in shared}
    assert settings(by_command[0])["seed"] == seed


def test_fields_of_openai_without_a_meaning_here_are_accepted(client: openai.OpenAI):
    made = client.images.generate(
        prompt="7", quality="high", style="vivid", background="opaque", moderation="low", user="me", extra_body={"steps": 2}
    )  # fmt: skip
    assert len(made.data or []) == 1


def test_models_are_retrieved_by_name(client: openai.OpenAI):
    found = client.models.retrieve("digits")
    Model.model_validate(found.to_dict(), strict=True)
    assert found == next(iter(client.models.list()))
    with pytest.raises(openai.NotFoundError, match="unknown model 'org/sd'; available: digits") as error:
        client.models.retrieve("org/sd")
    assert error.value.code == "model_not_found"


def test_what_is_not_supported_is_refused_in_openais_format(client: openai.OpenAI):
    photo = ("photo.png", b"\x89PNG" + b"0" * 5_000_000, "image/png")  # larger than a body may be
    calls: list[tuple[str, Callable[[], object]]] = [
        ("images.edit is not supported", lambda: client.images.edit(image=photo, prompt="a hat")),
        ("images.create_variation is not supported", lambda: client.images.create_variation(image=photo)),
        ("no endpoint /v1/chat/completions", lambda: client.chat.completions.create(model="digits", messages=[])),
    ]
    for words, call in calls:
        with pytest.raises(openai.NotFoundError, match=words) as error:
            call()
        assert error.value.type == "invalid_request_error"


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("GET", "/v1/images/generations", "POST"),
        ("DELETE", "/v1/images/generations", "POST"),
        ("POST", "/v1/models", "GET"),
        ("DELETE", "/v1/models/digits", "GET"),
        ("OPTIONS", "/v1/models", "GET"),
        ("POST", "/health", "GET"),
        ("PUT", "/metrics", "GET"),
    ],
)
def test_another_method_is_405_with_those_allowed(address: str, method: str, path: str, allowed: str):
    answer = httpx.request(method, f"{address}{path}")
    assert (answer.status_code, answer.headers["Allow"]) == (405, allowed)
    assert f"{method} {path}: the method must be {allowed}" in answer.json()["error"]["message"]
    assert httpx.head(f"{address}{path}").status_code == 405


def test_pages_of_other_origins_need_the_option(address: str, model: Pipeline, listening: Listening):
    asked = {"Origin": "https://example.org", "Access-Control-Request-Method": "POST"}
    asked["Access-Control-Request-Headers"] = "authorization, content-type"
    preflight = httpx.options(f"{address}/v1/images/generations", headers=asked)
    assert preflight.status_code == 200
    assert preflight.headers["Access-Control-Allow-Origin"] == "https://example.org"
    assert "authorization" in preflight.headers["Access-Control-Allow-Headers"].lower()
    for origin, allowed in (("https://example.org", "https://example.org"), ("https://example.com", None)):
        answer = httpx.get(f"{address}/v1/models", headers={"Origin": origin})
        assert answer.headers.get("Access-Control-Allow-Origin") == allowed
    with listening(ModelServer({"digits": model}, Limits(), key="s3cret"), cors=("*",)) as closed:
        assert httpx.options(f"{closed}/v1/images/generations", headers=asked).status_code == 200
        refused = httpx.get(f"{closed}/v1/models", headers=asked)  # a page can read why
        assert (refused.status_code, refused.headers["Access-Control-Allow-Origin"]) == (401, "*")
    with listening(ModelServer({"digits": model}, Limits())) as usual:
        assert "Access-Control-Allow-Origin" not in httpx.get(f"{usual}/v1/models", headers=asked).headers
        assert httpx.options(f"{usual}/v1/images/generations", headers=asked).status_code == 405


def test_the_documentation_page_is_that_of_the_api(address: str):
    page = httpx.get(f"{address}/docs")
    assert page.status_code == 200
    assert "/openapi.json" in page.text
