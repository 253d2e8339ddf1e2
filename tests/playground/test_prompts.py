"""Models of prompts behind the API: the openai client, batches of different texts, and prompts that hurt."""

from __future__ import annotations

import base64
import io
import json
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import openai
import pytest
from colours import COLOURS, colour_of
from PIL import Image

from ditlab.diffusion import GuidanceConfig
from ditlab.pipelines import Pipeline
from ditlab.playground.backend import Backend
from ditlab.playground.compute import submit_to_compute_thread
from ditlab.playground.page import controls
from ditlab.playground.page.prompts import chosen_prompts
from ditlab.playground.schema import GenerationRequest
from ditlab.playground.served import Limits, ModelServer

Listening = Callable[..., AbstractContextManager[str]]


@pytest.fixture(scope="module")
def colours(colours_run: Path) -> Pipeline:
    return Pipeline.load(colours_run)


@pytest.fixture(scope="module")
def server(colours: Pipeline, model: Pipeline) -> ModelServer:
    return ModelServer({"colours": colours, "digits": model}, Limits(images=8, steps=60, timeout=20))


@pytest.fixture(scope="module")
def address(server: ModelServer, listening: Listening) -> Iterator[str]:
    with listening(server) as found:
        yield found
        assert httpx.get(f"{found}/health").json() == {"status": "ok"}


@pytest.fixture(scope="module")
def client(address: str) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0) as found:
        yield found


def opened(answer: dict[str, Any]) -> list[Image.Image]:
    return [Image.open(io.BytesIO(base64.b64decode(image["b64_json"]))) for image in answer["data"]]


def pixels(answer: dict[str, Any]) -> np.ndarray:
    return np.stack([np.asarray(image) for image in opened(answer)])


def same(found: np.ndarray, expected: np.ndarray) -> bool:
    return found.shape == expected.shape and int(np.abs(found.astype(int) - expected).max()) <= 1


def test_the_openai_client_generates_images_of_a_prompt(client: openai.OpenAI, colours: Pipeline):
    made = client.images.generate(model="colours", prompt="a red image", n=2, extra_body={"seed": 7}).to_dict()
    assert same(pixels(made), colours.sample(prompts="a red image", seed=7, count=2))
    assert (made["prompts"], made["labels"], made["notes"]) == (["a red image"] * 2, [], [])
    more: dict[str, Any] = {"seed": 3, "guidance": 2, "negative_prompt": "a green image"}
    made = client.images.generate(prompt=["image", "blue"], extra_body=more).to_dict()  # type: ignore[arg-type]
    expected = colours.sample(prompts=["image", "blue"], seed=3, guidance=2, negative="a green image")
    assert same(pixels(made), expected)
    assert made["prompts"] == ["image", "blue"]


def test_models_say_whether_they_take_prompts(client: openai.OpenAI):
    found = {each.id: each.to_dict() for each in client.models.list()}
    assert found["colours"]["takes_prompts"] is True
    assert "a red image" in found["colours"]["example_prompts"]  # type: ignore[operator]
    assert (found["digits"]["takes_prompts"], found["digits"]["example_prompts"]) == (False, [])
    assert client.models.retrieve("colours").to_dict() == found["colours"]


def test_what_of_a_prompt_is_not_used_is_returned(client: openai.OpenAI):
    more = {"negative_prompt": "a mauve one", "guidance": 1}
    made = client.images.generate(model="colours", prompt="red " * 9 + "zebra", extra_body=more).to_dict()
    shown = repr(("red " * 9 + "zebra")[:60])
    notes = [
        f"prompt {shown}: words that no training caption has are skipped: 'zebra'",
        f"prompt {shown}: the first 3 words are used, of 9 that are known",
        "prompt 'a mauve one': words that no training caption has are skipped: 'mauve', 'one'",
        "the negative prompt has no effect, since guidance 1 is off",
    ]
    assert made["notes"] == notes
    settings = json.loads(opened(made)[0].info["ditlab"])
    assert (settings["notes"], settings["negative"]) == (notes, "a mauve one")
    assert settings["prompt"] == "red " * 9 + "zebra"
    assert "label" not in settings


def test_a_model_of_labels_takes_a_text_that_names_a_class(client: openai.OpenAI, model: Pipeline):
    made = client.images.generate(model="digits", prompt="a nice 7, please", n=2, extra_body={"seed": 1}).to_dict()
    assert np.abs(pixels(made).astype(int) - model.sample([7], seed=1, count=2)[..., 0]).max() <= 1
    assert made["labels"] == ["7", "7"]
    assert made["notes"] == [
        "prompt 'a nice 7, please': class '7'; this model is conditioned on classes, other words have no effect"
    ]
    for prompt, words in (("a cat", "names no class of this model; known: 0, 1, 2"), ("3 or 4", r"2 classes \(3, 4\)")):
        with pytest.raises(openai.BadRequestError, match=words):
            client.images.generate(model="digits", prompt=prompt)
    with pytest.raises(openai.BadRequestError, match="takes prompts, not labels"):
        client.images.generate(model="colours", prompt="", extra_body={"labels": ["red"]})


def test_requests_of_different_texts_share_network_calls(server: ModelServer, colours: Pipeline):
    """Texts of one to three tokens and none, and different negative prompts, each as alone."""
    asked = [
        ("red", "", 2.0), ("a blue image", "a red image", 3.0), ("", "", 1.0), ("a green image", "green", 1.5),
        ("all is blue", "red", 2.0), ("zebra", "zebra", 2.0),
    ]  # fmt: skip
    batcher, gate = server.batchers["colours"], threading.Event()
    before = batcher.calls
    submit_to_compute_thread(gate.wait, 60)
    requests = []
    for seed, (prompt, negative, scale) in enumerate(asked):
        body = GenerationRequest(
            model="colours", prompt=prompt, negative_prompt=negative, guidance=scale, seed=seed, n=2, steps=5
        )
        requests.append(batcher.submit(server.build_request(body)[2]))
    gate.set()
    for seed, (request, (prompt, negative, scale)) in enumerate(zip(requests, asked, strict=True)):
        guided = GuidanceConfig(scale)
        alone = colours.sample(prompts=[prompt], negative=negative, guidance=guided, seed=seed, count=2, steps=5)
        assert same(request.images.result(60), alone), prompt
    assert batcher.calls - before == 5


@pytest.mark.parametrize(
    ("prompt", "note"),
    [
        ("", "no known word is left"),
        (" \n\t", "no known word is left"),
        ("x" * 10_000, "are skipped: 'xxx"),
        ("red " * 2500, "the first 3 words are used, of 2,500"),
        ("красный 赤 🟥 red", "are skipped: 'красный', '赤', '🟥'"),
        ("<script>alert(1)</script> red", "are skipped: '<', 'script'"),
        ("red\x00\x1b[0m\r\n", "are skipped: '[', '0m'"),
        ("\u202ered \u200bred", ""),
        (["red", "green", "blue"], ""),
    ],
)
def test_prompts_that_hurt_are_images_like_others(address: str, prompt: str | list[str], note: str):
    body = {"model": "colours", "prompt": prompt, "seed": 1, "output_format": "webp"}
    answer = httpx.post(f"{address}/v1/images/generations", json=body, timeout=60)
    assert answer.status_code == 200
    made = answer.json()
    assert made["prompts"] == (prompt if isinstance(prompt, list) else [prompt])
    assert len(made["data"]) == len(made["prompts"])
    assert any(note in each for each in made["notes"]) if note else made["notes"] == []
    assert json.loads(opened(made)[0].getexif()[0x010E])["prompt"] == made["prompts"][0]


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ({"prompt": "r" * 10_001}, "prompt: a text of 10,001 characters is too long; at most 10,000"),
        ({"prompt": "red", "negative_prompt": "r" * 10_001}, "negative_prompt: a text of 10,001 characters"),
        ({"prompt": ["red"] * 9}, "n 9 is too many; at most 8 images per request"),
        ({"prompt": "\ud83d"}, "prompt: half of a surrogate pair"),
        ({"prompt": {"text": "red"}}, "is no text"),
    ],
)
def test_impossible_prompts_are_refused_with_the_reason(address: str, body: dict[str, object], words: str):
    content = json.dumps({"model": "colours", **body})
    headers = {"Content-Type": "application/json"}
    answer = httpx.post(f"{address}/v1/images/generations", content=content, headers=headers)
    assert answer.status_code == 400
    assert words in answer.json()["error"]["message"]


def test_more_prompts_than_images_are_said(server: ModelServer):
    _, _, request = server.build_request(GenerationRequest(model="colours", prompt=["red", "green", "blue"], n=2))
    assert request.captions == ["red", "green"]
    assert request.notes == ("the first 2 of 3 prompts are used: there are as many images",)


def test_without_a_prompt_the_examples_are_used(server: ModelServer, colours: Pipeline):
    _, _, request = server.build_request(GenerationRequest(model="colours", n=3))
    assert request.captions == list(colours.prompts[:3])


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a red image\nblue", "--prompt 'a red image' blue --negative green --guidance 2.5"),
        ("", "--count 4 --seed 5 --negative"),
        ("it's `$(x)`; <b>", """--prompt 'it'"'"'s `$(x)`; <b>' --negative"""),
        ("--out x", ""),
        ("red" * 1000, ""),
        ("a\u2028b", ""),
    ],
)
def test_the_command_of_prompts(colours_run: Path, server: ModelServer, text: str, words: str):
    backend = Backend(server, {"colours": "runs/colours"}, Path())
    chosen = chosen_prompts(backend, "colours", text)
    request = controls.build_request(backend, "colours", None, chosen, 5, 4, guidance=2.5, negative_prompt="green")
    command = backend.command("colours", request)
    assert words in command
    assert bool(command) == bool(words)


def test_the_command_of_prompts_generates_the_same_images(
    colours_run: Path, server: ModelServer, ditlab: Callable, tmp_path: Path
):
    import shlex

    backend = Backend(server, {"colours": str(colours_run)}, Path())
    body = GenerationRequest(
        model="colours", prompt=["all is red", "blue"], negative_prompt="a green image", n=3, seed=2
    )
    request = backend.build_request(body.model_copy(update={"guidance": 2.0}))
    made = backend.generate("colours", request)
    ended = ditlab(*shlex.split(backend.command("colours", request))[1:], "--out", tmp_path / "x", "--no-filmstrip")
    assert ended.code == 0, ended
    files = sorted((tmp_path / "x").glob("*.png"))
    assert [file.name for file in files] == ["000000-all is red.png", "000001-blue.png", "000002-all is red.png"]
    assert same(np.stack([np.asarray(Image.open(file)) for file in files]), made)
    settings = backend.settings("colours", request)
    assert (settings["prompts"], settings["negative"]) == (["all is red", "blue", "all is red"], "a green image")


@pytest.mark.parametrize("text", ["a `b` c", "``", "<img src=x>", "*a* _b_ [c](d)", "a ``` b"])
def test_code_is_longer_fenced_than_its_backticks(text: str):
    fenced = controls.code(text)
    fence = fenced[: fenced.index(" ")]
    assert set(fence) == {"`"}
    assert fence not in text
    assert fenced == f"{fence} {text} {fence}"


def test_a_default_negative_prompt_stays(colours: Pipeline):
    own = Pipeline(
        colours.network, colours.diffusion, colours.autoencoder, defaults=replace(colours.defaults, negative="red"),
        text=colours.text,
    )  # fmt: skip
    server = ModelServer({"own": own}, Limits())
    try:
        found = [server.build_request(GenerationRequest(prompt="red", negative_prompt=each))[2] for each in (None, "")]
        assert [request.config.negative for request in found] == ["red", ""]
    finally:
        server.close()


def test_images_follow_prompts(client: openai.OpenAI):
    names = list(COLOURS)
    made = client.images.generate(prompt=names, extra_body={"seed": 0, "guidance": 2}).to_dict()  # type: ignore[arg-type]
    assert colour_of(pixels(made)) == names


@pytest.mark.parametrize(
    ("text", "words"),
    [("\ud800", "half of a surrogate pair"), ("r" * 10_001, "a text of 10,001 characters is too long")],
)
def test_the_page_refuses_what_the_api_refuses(server: ModelServer, refuses: Callable, text: str, words: str):
    backend = Backend(server, {"colours": ""}, Path())
    refuses(lambda: controls.build_request(backend, "colours", None, [text], 0, 1), words)
    refuses(lambda: controls.build_request(backend, "colours", None, ["red"], 0, 1, negative_prompt=text), words)
