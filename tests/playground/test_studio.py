"""What the page does with models, without a browser."""

from __future__ import annotations

import io
import json
import shlex
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ditlab.diffusion import GuidanceConfig
from ditlab.errors import UserError
from ditlab.pipelines import Pipeline, SampleConfig, strip, to_images
from ditlab.playground.api import Generation, Limits, Refused, Served
from ditlab.playground.request import Cancelled, Interpolation, Request
from ditlab.playground.studio import FRAMES, Studio


@pytest.fixture
def studio(runs: Path) -> Iterator[Studio]:
    source = str(runs / "digits")
    served = Served({"digits": Pipeline.load(source)}, Limits(images=8, steps=1000))
    yield Studio(served, {"digits": source}, runs)
    served.close()


def test_images_are_followed_from_noise_to_the_end(studio: Studio):
    model = studio.model("digits")
    request = studio.request(Generation(labels=[3, 5], n=4, seed=2, steps=300, sampler="ddpm"))
    *under_way, last = studio.follow("digits", request)
    assert under_way
    assert [view.step for view in under_way] == sorted({view.step for view in under_way})
    assert not any(view.done for view in under_way)
    assert last.done
    expected = model.sample([3, 5], seed=2, steps=300, sampler="ddpm", count=4)
    assert np.abs(last.images.astype(int) - expected).max() <= 1
    assert len(last.states) == FRAMES - 1
    film, tile = np.asarray(strip(model, last.states)), last.images[0, ..., 0].repeat(8, axis=0).repeat(8, axis=1)
    frames = film[:, -64 - 5 : -5].astype(int)  # the last ones, x_t and x0, with a gap of 5 around each
    assert any(np.abs(frames[k : k + 64] - tile).max() <= 1 for k in range(len(frames) // 2))


def test_labels_whose_names_are_not_clear_are_given_by_number(studio: Studio):
    model = studio.model("digits")
    model.names = ("crane", "a, b", "crane", *map(str, range(3, 10)))
    given: list[tuple[list[int | str], str]] = [([2], "2"), ([1], "1"), ([0], "crane"), ([0, 2], "0,2"), ([5], "5")]
    for labels, words in given:
        request = studio.request(Generation(labels=labels, n=2))
        found = shlex.split(studio.command("digits", request))
        assert found[found.index("--labels") + 1] == words
        assert studio.settings("digits", request)["label indices"] == (labels * 2)[:2]


def test_a_latent_is_that_of_its_image(studio: Studio):
    model = studio.model("digits")
    latent, image = studio.latent("digits", studio.request(Generation(labels=[4], n=1, seed=6)))
    assert np.abs(to_images(model, latent)[0].astype(int) - image).max() == 0
    assert np.abs(image.astype(int) - model.sample([4], seed=6)[0]).max() <= 1


def test_who_looks_away_gives_the_request_up(studio: Studio):
    request = studio.request(Generation(n=8, steps=1000, sampler="ddpm"))
    views = studio.follow("digits", request)
    next(views)
    views.close()  # type: ignore[attr-defined]
    with pytest.raises(Cancelled):
        request.images.result(timeout=20)


def test_the_command_makes_the_same_images(studio: Studio, ditlab: Callable, tmp_path: Path):
    asked = Generation(
        labels=[7, 1], n=3, seed=9, steps=5, sampler="heun", guidance=2.5, guidance_low=0.1, guidance_high=0.8
    )
    request = studio.request(asked)
    made = studio.make("digits", request)
    words = shlex.split(studio.command("digits", request))
    ended = ditlab(*words[1:], "--out", tmp_path / "made", "--no-filmstrip")
    assert ended.code == 0, ended
    files = sorted((tmp_path / "made").glob("*.png"))
    pictures = [Image.open(io.BytesIO(file.read_bytes())) for file in files]
    found = np.stack([np.asarray(picture) for picture in pictures])
    assert np.abs(found.astype(int) - made[..., 0]).max() <= 1
    settings = json.loads(pictures[0].info["ditlab"])
    here = studio.settings("digits", request)
    assert {name: settings[name] for name in ("model", "seed", "sampler", "steps", "guidance")} == {
        name: here[name] for name in ("model", "seed", "sampler", "steps", "guidance")
    }
    assert here["labels"] == ["7", "1", "7"]


def test_an_interpolation_is_made_beside_other_requests(studio: Studio):
    config = SampleConfig("euler", 6, GuidanceConfig(2.0))
    batcher, model = studio.served.batchers["digits"], studio.model("digits")
    other = batcher.submit(Request(torch.tensor([4, 4]), 3, config))
    between = batcher.submit(Interpolation(torch.tensor([2] * 5), 1, config, last=(8, 6)))
    found = between.images.result(60)
    for image, (seed, label) in ((found[0], (1, 2)), (found[-1], (8, 6))):
        alone = model.sample([label], seed=seed, steps=6, sampler="euler", guidance=2.0)[0]
        assert np.abs(image.astype(int) - alone).max() <= 1
    alone = model.sample([4, 4], seed=3, steps=6, sampler="euler", guidance=2.0)
    assert np.abs(other.images.result(60).astype(int) - alone).max() <= 1


def test_every_class_has_its_picture_made_once(studio: Studio):
    pictures = studio.pictures("digits")
    assert len(pictures) == 10
    expected = studio.model("digits").sample(None, seed=0, count=10)
    parts = torch.arange(10).split(64)
    assert len(parts) == 1
    assert np.abs(np.stack(pictures).astype(int) - expected).max() <= 1
    made = studio.served.batchers["digits"].made
    assert studio.pictures("digits") is not None
    assert studio.served.batchers["digits"].made == made


def test_a_model_as_it_was_earlier(studio: Studio, refuses: Callable):
    first, last = studio.checkpoints("digits")
    request = studio.request(Generation(labels=[1], n=2, seed=1, steps=4))
    now = studio.make("digits", request)
    again = studio.request(Generation(labels=[1], n=2, seed=1, steps=4))
    np.testing.assert_array_equal(studio.make("digits", again, studio.earlier("digits", last)), now)
    earlier = studio.request(Generation(labels=[1], n=2, seed=1, steps=4))
    assert not np.array_equal(studio.make("digits", earlier, studio.earlier("digits", first)), now)
    refuses(lambda: studio.earlier("digits", 7), "no checkpoint after 7 images", f"{first:,}", f"{last:,}")


def test_names_that_a_client_makes_up_lead_nowhere(studio: Studio, refuses: Callable):
    refuses(lambda: studio.model("../../etc/passwd"), "no model '../../etc/passwd'")
    with pytest.raises(Refused, match="no model"):
        studio.request(Generation(model="../digits"))
    with pytest.raises(UserError, match="no model"):
        studio.model("x" * 10_000)
