"""What a program uses of a pipeline: arguments, steps, latents, pictures of notebooks."""

import io
from collections.abc import Callable

import numpy as np
import pytest
import torch
from PIL import Image

from ditlab.encoders import AutoencoderConfig, new_kl
from ditlab.errors import UserError
from ditlab.pipelines import Pipeline, SampleConfig, Step, grid
from ditlab.pipelines.sampling import image_generators, normal


@pytest.mark.parametrize("sampler", ["ddpm", "heun"])
def test_the_last_step_of_denoise_has_the_images_of_sample(make: Callable, sampler: str):
    model: Pipeline = make()
    given = {"guidance": 2.0, "steps": 3, "sampler": sampler, "seed": 4, "count": 2}
    steps = list(model.denoise(["fish"], **given))  # type: ignore[arg-type]
    assert [(step.index, step.steps) for step in steps] == [(1, 3), (2, 3), (3, 3)]
    assert [step.t for step in steps] == sorted((step.t for step in steps), reverse=True)
    assert steps[-1].t == 0
    np.testing.assert_array_equal(steps[-1].images, model.sample(["fish"], **given))  # type: ignore[arg-type]
    assert not np.array_equal(steps[0].images, steps[0].predicted)
    assert steps[0].predicted.shape == (2, 8, 8, 1)
    assert f"{steps[0]!r}".startswith("Step(index=1, steps=3, t=0.6")


def test_a_callback_gets_every_step_of_every_batch_and_changes_nothing(make: Callable):
    model, seen = make(), []
    images = model.sample(count=5, batch=2, callback=seen.append)
    np.testing.assert_array_equal(images, model.sample(count=5, batch=2))
    assert [(step.first, step.index, len(step.x)) for step in seen] == [
        (first, index, count) for first, count in ((0, 2), (2, 2), (4, 1)) for index in (1, 2, 3, 4)
    ]
    np.testing.assert_array_equal(np.concatenate([step.images for step in seen if step.index == 4]), images)


def test_a_callback_of_a_compiled_pipeline_sees_no_filling(make: Callable):
    model, seen = make(), []
    model.prepare(model.defaults)._compiled = True  # fills up the last batch, without waiting for a compiler
    noise = np.random.default_rng(0).standard_normal((3, 1, 8, 8))
    images = model.sample(batch=2, callback=seen.append, noise=noise)
    assert [len(step.x) for step in seen[::4]] == [2, 1]
    assert np.abs(images.astype(int) - make().sample(noise=noise).astype(int)).max() <= 1


@pytest.mark.parametrize("sampler", ["ddpm", "ddim"])
def test_the_noise_of_a_seed_given_as_noise_gives_the_images_of_the_seed(make: Callable, sampler: str):
    model = make()
    noise = normal(image_generators(7, 0, 3), model.latent_shape(), torch.device("cpu"))
    images = model.sample(seed=7, count=3, sampler=sampler)
    for given in (noise, noise.numpy().astype(np.float64)):
        np.testing.assert_array_equal(model.sample(seed=7, noise=given, sampler=sampler), images)
    other = model.sample(noise=-noise, sampler=sampler)
    assert not np.array_equal(other, images)
    (*_, last) = model.denoise(noise=-noise, sampler=sampler)
    np.testing.assert_array_equal(last.images, other)
    wide = model.sample(noise=np.zeros((2, 1, 8, 12)), size=(8, 12))
    assert wide.shape == (2, 8, 12, 1)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"guidance_scale": 4}, "use guidance"),
        ({"num_inference_steps": 20}, "use steps"),
        ({"generator": None}, "use seed"),
        ({"sampel": "heun"}, "did you mean 'sampler'?"),
        ({"noise": np.zeros((2, 3, 8, 8))}, "(N, 1, 8, 8)"),
        ({"noise": np.zeros((2, 1, 8, 8)), "count": 3}, "(3, 1, 8, 8)"),
        ({"noise": np.full((1, 1, 8, 8), np.nan)}, "NaN"),
        ({"count": 0}, "count 0"),
        ({"seed": 1.5}, "seed 1.5"),
    ],
)
def test_arguments_that_are_not_possible_are_answered_in_one_line(make: Callable, arguments: dict, words: str):
    model = make()
    for method in (model.sample, model.denoise):
        with pytest.raises(UserError) as raised:
            method(**arguments)
        assert words in str(raised.value)
        assert "\n" not in str(raised.value)


def test_numpy_and_pillow_have_the_same_pixels(make: Callable):
    model = make(pixels=(3, 8, 8))
    images = model.sample(count=3)
    pictures = model.sample(count=3, return_type="pil")
    assert [picture.mode for picture in pictures] == ["RGB"] * 3
    np.testing.assert_array_equal(np.stack([np.asarray(picture) for picture in pictures]), images)
    with pytest.raises(UserError, match="known: numpy, pil"):
        model.sample(return_type="tensor")
    assert model.sample(np.array([2, 0])).shape[0] == 2  # labels as an array, and one as NumPy's number
    np.testing.assert_array_equal(model.sample(np.int64(2), count=1), model.sample("fish", count=1))


def test_pixels_survive_encode_and_decode_and_latents_are_normalised(make: Callable):
    model = make(pixels=(3, 8, 8))
    images = np.random.default_rng(0).integers(0, 256, (70, 8, 8, 3), np.uint8)
    latents = model.encode(images)
    assert latents.shape == (70, 3, 8, 8)
    np.testing.assert_array_equal(model.decode(latents), images)
    np.testing.assert_array_equal(model.decode(latents.numpy()), images)
    torch.testing.assert_close(latents, model.encode([Image.fromarray(image) for image in images]))
    torch.testing.assert_close(latents, model.encode(images / 255), atol=1e-5, rtol=0)
    raw = torch.from_numpy(images).permute(0, 3, 1, 2) / 127.5 - 1
    torch.testing.assert_close(latents, (raw - model.autoencoder.mean) / model.autoencoder.std)


def test_encoding_by_an_autoencoder_is_the_mean_of_its_posterior(make: Callable):
    autoencoder = new_kl(AutoencoderConfig(kind="kl", latent_channels=2, widths=(8, 8)), 1, 0)
    autoencoder.set_statistics(torch.tensor([0.1, -0.2]), torch.tensor([0.5, 2.0]))
    model = make(autoencoder=autoencoder)
    images = np.random.default_rng(0).integers(0, 256, (2, 8, 8, 1), np.uint8)
    with torch.no_grad():
        x = torch.from_numpy(images).permute(0, 3, 1, 2).float() / 127.5 - 1
        mean = autoencoder.vae.encode(x).latent_dist.mean
    expected = (mean - torch.tensor([0.1, -0.2]).view(2, 1, 1)) / torch.tensor([0.5, 2.0]).view(2, 1, 1)
    torch.testing.assert_close(model.encode(images), expected)
    for images, words in ((np.zeros((1, 8, 8, 3), np.uint8), "3 channels"), (np.zeros((1, 7, 8), np.uint8), "6 or 8")):
        with pytest.raises(UserError, match=words):
            model.encode(images)
    with pytest.raises(UserError, match=r"\(N, 2, h, w\)"):
        model.decode(torch.zeros(1, 4, 4, 4))


def test_notebooks_show_images_and_steps_as_pictures(make: Callable):
    model = make()
    images = model.sample(count=4)
    shown = np.asarray(Image.open(io.BytesIO(images._repr_png_())))
    np.testing.assert_array_equal(shown, np.asarray(grid(np.asarray(images), 2)))
    assert images[0]._repr_png_() is not None
    assert (images > 3)._repr_png_() is None
    assert images.mean(axis=0)._repr_png_() is None
    assert images[0, 0]._repr_png_() is None
    step = next(model.denoise(count=4))
    assert isinstance(step, Step)
    assert step._repr_png_() == step.predicted._repr_png_()


def test_the_repr_of_a_pipeline_says_what_it_makes(make: Callable):
    model = make(names=tuple("abcdefg"), defaults=SampleConfig("euler", 4))
    assert repr(model) == (
        "Pipeline(DiT: block adaln-zero, width 16, heads 2, depth 2, patch 2; images 8x8x1, 7 classes (a, b, c, d, e, ...); "
        "euler, 4 steps; cpu)"
    )
    assert "no classes" in repr(make(names=()))
