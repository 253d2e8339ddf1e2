"""The page's access to models, without a browser."""

from __future__ import annotations

import io
import json
import shlex
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from ditlab.diffusion import GuidanceConfig
from ditlab.errors import UserError
from ditlab.pipelines import Pipeline, SampleConfig, strip
from ditlab.playground.backend import FRAMES, GUIDANCE, Backend
from ditlab.playground.page import controls
from ditlab.playground.request import Cancelled, Interpolation, Request
from ditlab.playground.schema import GenerationRequest, RequestError
from ditlab.playground.served import Limits, ModelServer


@pytest.fixture
def backend(runs: Path) -> Iterator[Backend]:
    source = str(runs / "digits")
    server = ModelServer({"digits": Pipeline.load(source)}, Limits(images=8, steps=1000))
    yield Backend(server, {"digits": source}, runs)
    server.close()


def test_previews_lead_to_the_final_images(backend: Backend):
    model = backend.model("digits")
    request = backend.build_request(GenerationRequest(labels=[3, 5], n=4, seed=2, steps=300, sampler="ddpm"))
    *previews, last = backend.generate_with_previews("digits", request)
    assert previews
    assert [view.step for view in previews] == sorted({view.step for view in previews})
    assert not any(view.finished for view in previews)
    assert last.finished
    expected = model.sample([3, 5], seed=2, steps=300, sampler="ddpm", count=4)
    assert np.abs(last.images.astype(int) - expected).max() <= 1
    assert len(last.states) == FRAMES - 1
    film, tile = np.asarray(strip(model, last.states)), last.images[0, ..., 0].repeat(8, axis=0).repeat(8, axis=1)
    frames = film[:, -64 - 5 : -5].astype(int)  # the last ones, x_t and x0, with a gap of 5 around each
    assert any(np.abs(frames[k : k + 64] - tile).max() <= 1 for k in range(len(frames) // 2))


def test_ambiguous_labels_are_written_as_numbers(backend: Backend):
    model = backend.model("digits")
    model.names = ("crane", "a, b", "crane", *map(str, range(3, 10)))
    given: list[tuple[list[int | str], str]] = [([2], "2"), ([1], "1"), ([0], "0"), ([0, 2], "0,2"), ([5], "5")]
    for labels, words in given:
        request = backend.build_request(GenerationRequest(labels=labels, n=2))
        found = shlex.split(backend.command("digits", request))
        assert found[found.index("--labels") + 1] == words
        assert backend.settings("digits", request)["label indices"] == (labels * 2)[:2]


def test_a_latent_decodes_to_its_image(backend: Backend):
    model = backend.model("digits")
    latent, image = backend.generate_latent("digits", backend.build_request(GenerationRequest(labels=[4], n=1, seed=6)))
    assert np.abs(model.decode(latent)[0].astype(int) - image).max() == 0
    assert np.abs(image.astype(int) - model.sample([4], seed=6)[0]).max() <= 1


def test_closing_the_previews_cancels_the_request(backend: Backend):
    request = backend.build_request(GenerationRequest(n=8, steps=1000, sampler="ddpm"))
    views = backend.generate_with_previews("digits", request)
    next(views)
    views.close()  # type: ignore[attr-defined]
    with pytest.raises(Cancelled):
        request.images.result(timeout=20)


def test_the_command_generates_the_same_images(backend: Backend, ditlab: Callable, tmp_path: Path):
    body = GenerationRequest(
        labels=[7, 1], n=3, seed=9, steps=5, sampler="heun", guidance=2.5, guidance_low=0.1, guidance_high=0.8
    )
    request = backend.build_request(body)
    made = backend.generate("digits", request)
    words = shlex.split(backend.command("digits", request))
    ended = ditlab(*words[1:], "--out", tmp_path / "made", "--no-filmstrip")
    assert ended.code == 0, ended
    files = sorted((tmp_path / "made").glob("*.png"))
    pictures = [Image.open(io.BytesIO(file.read_bytes())) for file in files]
    found = np.stack([np.asarray(picture) for picture in pictures])
    assert np.abs(found.astype(int) - made[..., 0]).max() <= 1
    settings = json.loads(pictures[0].info["ditlab"])
    here = backend.settings("digits", request)
    assert {name: settings[name] for name in ("model", "seed", "sampler", "steps", "guidance")} == {
        name: here[name] for name in ("model", "seed", "sampler", "steps", "guidance")
    }
    assert here["labels"] == ["7", "1", "7"]


def test_an_interpolation_shares_network_calls(backend: Backend):
    config = SampleConfig("euler", 6, GuidanceConfig(2.0))
    batcher, model = backend.server.batchers["digits"], backend.model("digits")
    other = batcher.submit(Request(torch.tensor([4, 4]), 3, config))
    between = batcher.submit(Interpolation(torch.tensor([2] * 5), 1, config, end=(8, 6)))
    found = between.images.result(60)
    for image, (seed, label) in ((found[0], (1, 2)), (found[-1], (8, 6))):
        alone = model.sample([label], seed=seed, steps=6, sampler="euler", guidance=2.0)[0]
        assert np.abs(image.astype(int) - alone).max() <= 1
    alone = model.sample([4, 4], seed=3, steps=6, sampler="euler", guidance=2.0)
    assert np.abs(other.images.result(60).astype(int) - alone).max() <= 1


def test_class_images_are_generated_once(backend: Backend):
    pictures = backend.class_images("digits")
    assert len(pictures) == 10
    expected = backend.model("digits").sample(None, guidance=GUIDANCE, seed=0, count=10)
    parts = torch.arange(10).split(64)
    assert len(parts) == 1
    assert np.abs(np.stack(pictures).astype(int) - expected).max() <= 1
    made = backend.server.batchers["digits"].generated
    assert backend.class_images("digits") is not None
    assert backend.server.batchers["digits"].generated == made


def test_an_earlier_checkpoint(backend: Backend, refuses: Callable):
    first, last = backend.checkpoints("digits")
    request = backend.build_request(GenerationRequest(labels=[1], n=2, seed=1, steps=4))
    now = backend.generate("digits", request)
    again = backend.build_request(GenerationRequest(labels=[1], n=2, seed=1, steps=4))
    np.testing.assert_array_equal(backend.generate("digits", again, backend.load_checkpoint("digits", last)), now)
    earlier = backend.build_request(GenerationRequest(labels=[1], n=2, seed=1, steps=4))
    assert not np.array_equal(backend.generate("digits", earlier, backend.load_checkpoint("digits", first)), now)
    refuses(lambda: backend.load_checkpoint("digits", 7), "no checkpoint at 7 images", f"{first:,}", f"{last:,}")


def test_unknown_names_are_refused(backend: Backend, refuses: Callable):
    refuses(lambda: backend.model("../../etc/passwd"), "unknown model '../../etc/passwd'")
    with pytest.raises(RequestError, match="unknown model"):
        backend.build_request(GenerationRequest(model="../digits"))
    with pytest.raises(UserError, match="unknown model"):
        backend.model("x" * 10_000)


def test_the_page_guides_where_the_model_does_not_say_how(backend: Backend, monkeypatch: pytest.MonkeyPatch):
    model = backend.model("digits")
    assert model.defaults.guidance.scale == 1
    assert backend.guidance("digits") == GUIDANCE
    request = controls.build_request(backend, "digits", [3], None, 1, 2)
    assert request.config.guidance.scale == GUIDANCE
    assert "--guidance 2.0" in backend.command("digits", request)
    assert controls.build_request(backend, "digits", [3], None, 1, 2, guidance=1.0).config.guidance.scale == 1
    assert backend.build_request(GenerationRequest(n=1)).config == model.defaults  # the API's, as the command's
    monkeypatch.setattr(model, "defaults", SampleConfig("euler", 2, GuidanceConfig(1.25)))
    assert backend.guidance("digits") == 1.25
    monkeypatch.setattr(Pipeline, "guidable", False)
    monkeypatch.setattr(model, "defaults", SampleConfig("euler", 2))
    assert controls.build_request(backend, "digits", [3], None, 1, 2).config.guidance.scale == 1


@pytest.mark.parametrize("value", [1.5, -1, float("nan"), float("inf"), 2**53, "7", True])
def test_seeds_that_are_not_whole_numbers_are_refused(backend: Backend, refuses: Callable, value: Any):
    refuses(lambda: controls.build_request(backend, "digits", [3], None, value, 2), "seed")


def test_a_whole_number_is_a_seed_and_none_is_random(backend: Backend):
    assert controls.build_request(backend, "digits", [3], None, 7.0, 2.0).seed == 7
    assert controls.build_request(backend, "digits", [3], None, None, 2).seed >= 0


def test_steps_end_where_the_models_schedule_ends(runs: Path):
    model = Pipeline.load(runs / "digits")
    diffusion = replace(model.diffusion, schedule="linear-beta", target="epsilon")
    ddpm = Pipeline(model.network, diffusion, model.autoencoder)
    server = ModelServer({"digits": model, "ddpm": ddpm}, Limits(steps=5000))
    backend = Backend(server, {}, runs)
    assert (backend.max_steps("digits"), backend.max_steps("ddpm")) == (5000, ddpm.denoiser.schedule.steps)
    server.close()
