from collections.abc import Callable

import numpy as np
import pytest
import torch
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution

from ditlab.encoders import Autoencoder, AutoencoderConfig, float_to_uint8, new_kl, uint8_to_float


def images(count: int, channels: int, height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, channels, height, width), np.uint8)


def test_bytes_become_numbers_from_minus_one_to_one_and_the_array_stays_as_it_was():
    pixels = np.array([0, 51, 255], np.uint8).reshape(1, 1, 1, 3)
    assert uint8_to_float(pixels).flatten().tolist() == pytest.approx([-1, -0.6, 1], abs=1e-6)
    assert uint8_to_float(pixels).dtype == torch.float32
    assert pixels.flatten().tolist() == [0, 51, 255]


def test_every_byte_survives_the_way_to_floats_and_back_and_what_is_beyond_the_range_is_clamped():
    pixels = torch.arange(256, dtype=torch.uint8).reshape(1, 1, 1, 16, 16)  # of a clip too
    assert torch.equal(float_to_uint8(uint8_to_float(pixels)), pixels)
    assert float_to_uint8(torch.tensor([-3.0, -1.0, 0.001, 1.0, 7.0])).tolist() == [0, 0, 128, 255, 255]


def test_pixels_go_through_the_identity_and_come_back_whatever_the_statistics():
    pixels = uint8_to_float(images(3, 5, 4, 6))
    autoencoder = Autoencoder(5, 5, 1)
    autoencoder.set_statistics(torch.linspace(-0.5, 0.5, 5), torch.linspace(0.2, 2, 5))
    moments = autoencoder.encode(pixels)
    latent = autoencoder.latent(moments, torch.full_like(pixels, 9.0))
    mean, std = np.linspace(-0.5, 0.5, 5), np.linspace(0.2, 2, 5)
    direct = (pixels.numpy().astype(np.float64) - mean[:, None, None]) / std[:, None, None]
    np.testing.assert_allclose(latent.numpy(), direct, atol=1e-5)
    np.testing.assert_allclose(autoencoder.decode(latent).numpy(), pixels.numpy(), atol=1e-6)
    assert torch.equal(autoencoder.raw_latent(moments, latent), pixels)
    assert autoencoder.latent_shape((4, 6)) == (5, 4, 6)
    assert autoencoder.shipped


def test_normalised_by_their_own_statistics_latents_have_mean_0_and_deviation_1():
    pixels = uint8_to_float(images(50, 2, 6, 4))
    autoencoder = Autoencoder(2, 2, 1)
    values = pixels.numpy().astype(np.float64)
    autoencoder.set_statistics(
        torch.from_numpy(values.mean((0, 2, 3))).float(), torch.from_numpy(values.std((0, 2, 3))).float()
    )
    latent = autoencoder.latent(pixels, torch.zeros_like(pixels)).numpy()
    np.testing.assert_allclose(latent.mean((0, 2, 3)), 0, atol=1e-5)
    np.testing.assert_allclose(latent.std((0, 2, 3)), 1, atol=1e-5)


def test_the_bounds_of_pixel_latents_are_black_and_white():
    autoencoder = Autoencoder(2, 2, 1)
    autoencoder.set_statistics(torch.tensor([0.3, -0.7]), torch.tensor([0.5, 2.0]))
    assert autoencoder.bounds is not None
    low, high = autoencoder.bounds
    assert low.shape == (2, 1, 1)
    np.testing.assert_allclose(low.flatten(), [-2.6, -0.15], atol=1e-6)
    np.testing.assert_allclose(high.flatten(), [1.4, 0.85], atol=1e-6)


def test_a_channel_that_never_changes_is_not_divided_by_zero():
    autoencoder = Autoencoder(1, 1, 1)
    autoencoder.set_statistics(torch.tensor([-1.0]), torch.tensor([0.0]))
    assert torch.isfinite(autoencoder.latent(-torch.ones(1, 1, 2, 2), torch.zeros(1, 1, 2, 2))).all()


@pytest.mark.parametrize(("widths", "factor"), [((8,), 1), ((8, 16), 2), ((8, 8, 16), 4)])
@pytest.mark.parametrize(("channels", "height", "width"), [(1, 16, 16), (3, 8, 24)])
def test_a_kl_autoencoder_takes_any_channels_and_rectangles(
    kl: Callable, widths: tuple[int, ...], factor: int, channels: int, height: int, width: int
):
    config = AutoencoderConfig(kind="kl", latent_channels=3, widths=widths)
    autoencoder = kl(channels, 0, config)
    shape = (3, height // factor, width // factor)
    assert (autoencoder.factor, config.factor, autoencoder.latent_shape((height, width))) == (factor, factor, shape)
    moments = autoencoder.encode(uint8_to_float(images(2, channels, height, width)))
    assert moments.shape == (2, 6, *shape[1:])
    latent = autoencoder.latent(moments, torch.zeros(2, *shape))
    assert latent.shape == (2, *shape)
    decoded = autoencoder.decode(latent)
    assert decoded.shape == (2, channels, height, width)
    assert torch.isfinite(decoded).all()
    assert autoencoder.bounds is None


def test_the_articles_autoencoder_turns_an_image_into_two_numbers(kl: Callable):
    autoencoder = kl(1, 0, AutoencoderConfig(kind="kl", latent_channels=2, widths=(8, 8, 8, 8)))
    assert autoencoder.latent_shape((8, 8)) == (2, 1, 1)
    assert autoencoder.decode(torch.zeros(3, 2, 1, 1)).shape == (3, 1, 8, 8)


def test_a_draw_from_the_posterior_is_the_mean_and_noise_times_the_deviation(kl: Callable):
    autoencoder = kl()
    moments = torch.randn(4, 4, 3, 5, generator=torch.Generator().manual_seed(1)) * 3
    moments[0, 2:], moments[1, 2:] = 50.0, -90.0  # log variances beyond what diffusers lets through
    noise = torch.randn(4, 2, 3, 5, generator=torch.Generator().manual_seed(2))
    direct = moments.numpy().astype(np.float64)
    deviation = np.exp(np.clip(direct[:, 2:], -30, 20) / 2)
    np.testing.assert_allclose(
        autoencoder.raw_latent(moments, noise), direct[:, :2] + deviation * noise.numpy(), rtol=1e-5, atol=1e-5
    )
    theirs = DiagonalGaussianDistribution(moments).sample(torch.Generator().manual_seed(2))
    torch.testing.assert_close(autoencoder.raw_latent(moments, noise), theirs)


def test_latents_are_raw_latents_normalised_and_decoding_undoes_it(kl: Callable):
    autoencoder = kl()
    autoencoder.set_statistics(torch.tensor([0.5, -2.0]), torch.tensor([0.25, 4.0]))
    moments = autoencoder.encode(uint8_to_float(images(2, 1, 8, 8)))
    noise = torch.randn(2, 2, 4, 4)
    raw = autoencoder.raw_latent(moments, noise)
    latent = autoencoder.latent(moments, noise)
    np.testing.assert_allclose(latent[:, 0], (raw[:, 0].numpy() - 0.5) / 0.25, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(latent[:, 1], (raw[:, 1].numpy() + 2.0) / 4.0, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(autoencoder.decode(latent), autoencoder.decode_raw(raw), rtol=1e-4, atol=1e-4)


def test_weights_are_a_function_of_the_seed_and_nobody_elses_chance_is_touched(kl: Callable):
    torch.manual_seed(5)
    before = torch.random.get_rng_state()
    first, again, other = kl(seed=3), kl(seed=3), kl(seed=4)
    assert torch.equal(torch.random.get_rng_state(), before)
    torch.rand(1)
    assert kl(seed=3).fingerprint() == first.fingerprint() == again.fingerprint() != other.fingerprint()


@pytest.mark.parametrize("side", ["height", "width"])
@pytest.mark.parametrize(("size", "words"), [(30, "for 30: 28 or 32"), (3, "for 3: 4"), (33, "for 33: 32 or 36")])
def test_a_size_the_factor_does_not_divide_names_the_nearest(
    kl: Callable, refuses: Callable, side: str, size: int, words: str
):
    autoencoder = kl(1, 0, AutoencoderConfig(kind="kl", widths=(8, 8, 8)))
    shape = (size, 8) if side == "height" else (8, size)
    message = refuses(lambda: autoencoder.latent_shape(shape), f"{shape[0]}x{shape[1]}", "factor 4", words)
    assert message.endswith(words)


@pytest.mark.parametrize(
    "config",
    [
        AutoencoderConfig(kind="kl", widths=()),
        AutoencoderConfig(kind="kl", widths=(8, 0)),
        AutoencoderConfig(kind="kl", latent_channels=0),
        AutoencoderConfig(kind="kl", layers=0),
    ],
)
def test_impossible_widths_are_one_line(refuses: Callable, config: AutoencoderConfig):
    refuses(lambda: new_kl(config, 1, 0), "1 or more")


@pytest.mark.parametrize("widths", [(8, 12), (10, 15), (1,), (7, 33)])
def test_widths_need_not_be_powers_of_two(kl: Callable, widths: tuple[int, ...]):
    autoencoder = kl(1, 0, AutoencoderConfig(kind="kl", widths=widths, latent_channels=1))
    assert torch.isfinite(autoencoder.encode(torch.rand(1, 1, 4, 4))).all()


def test_the_fingerprint_follows_weights_and_architecture_and_not_statistics(kl: Callable):
    autoencoder = kl()
    before = autoencoder.fingerprint()
    autoencoder.set_statistics(torch.tensor([3.0, 4.0]), torch.tensor([5.0, 6.0]))
    assert autoencoder.fingerprint() == before
    next(autoencoder.vae.parameters()).add_(1e-3)
    assert autoencoder.fingerprint() != before
    assert len({Autoencoder(c, c, 1).fingerprint() for c in (1, 2, 3)}) == 3
