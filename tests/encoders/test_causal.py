"""The causal autoencoder: what each latent frame depends on, chunks against the whole, and what is refused."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from ditlab.encoders import AutoencoderConfig, causal
from ditlab.encoders.causal import CausalAutoencoder, CausalConv3d, new_causal, temporal_strides
from ditlab.errors import UserError

CONFIG = AutoencoderConfig(kind="causal", latent_channels=3, widths=(4, 6, 8), layers=1, time_factor=4)


@pytest.fixture(scope="module")
def autoencoder() -> CausalAutoencoder:
    return new_causal(CONFIG, 2, 0).double().eval()


def clip(frames: int, seed: int = 0) -> Tensor:
    return torch.randn(1, 2, frames, 8, 12, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@torch.no_grad()
def test_shapes_are_those_that_are_announced(autoencoder: CausalAutoencoder):
    for frames in (1, 5, 17):
        moments = autoencoder.encode(clip(frames))
        latent = autoencoder.raw_latent(moments, torch.zeros_like(moments[:, :3]))
        assert tuple(latent.shape[1:]) == autoencoder.latent_shape((frames, 8, 12)) == (3, 1 + (frames - 1) // 4, 2, 3)
        assert autoencoder.decode(latent).shape == ((1, 2, frames, 8, 12) if frames > 1 else (1, 2, 8, 12))


@torch.no_grad()
def test_an_image_is_a_clip_of_one_frame(autoencoder: CausalAutoencoder):
    x = clip(9)
    image = autoencoder.encode(x[:, :, 0])
    torch.testing.assert_close(image, autoencoder.encode(x[:, :, :1]), rtol=0, atol=0)
    torch.testing.assert_close(image[:, :, 0], autoencoder.encode(x)[:, :, 0], rtol=0, atol=1e-12)
    assert autoencoder.latent_shape((8, 12)) == (3, 1, 2, 3)


@torch.no_grad()
@pytest.mark.parametrize("frame", range(9))
def test_a_frame_moves_no_latent_before_its_own(autoencoder: CausalAutoencoder, frame: int):
    x, y = clip(9), clip(9)
    y[:, :, frame] += 1
    moved = (autoencoder.encode(x) - autoencoder.encode(y)).abs().amax(dim=(0, 1, 3, 4)) > 1e-9
    own = -(-frame // 4)  # frames 1 to 4 have latent 1
    assert not moved[:own].any()
    assert moved[own]


@torch.no_grad()
@pytest.mark.parametrize("latent", range(3))
def test_a_latent_moves_no_frame_before_its_own(autoencoder: CausalAutoencoder, latent: int):
    z = torch.randn(1, 3, 3, 2, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    other = z.clone()
    other[:, :, latent] += 1
    moved = (autoencoder.decode(z) - autoencoder.decode(other)).abs().amax(dim=(0, 1, 3, 4)) > 1e-9
    first = 0 if latent == 0 else 4 * latent - 3
    assert not moved[:first].any()
    assert moved[first]


@torch.no_grad()
def test_chunks_give_what_the_whole_gives_and_hold_few_frames(
    autoencoder: CausalAutoencoder, monkeypatch: pytest.MonkeyPatch
):
    x, longest = clip(41), 0
    monkeypatch.setattr(causal, "CHUNK", 100)
    moments = autoencoder.encode(x)
    pixels = autoencoder.decode_raw(moments[:, :3])

    def look(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        nonlocal longest
        longest = max(longest, inputs[0].shape[2])

    hooks = [each.register_forward_hook(look) for each in autoencoder.modules() if isinstance(each, nn.Conv3d)]
    for chunk in (1, 2, 3):
        longest = 0
        monkeypatch.setattr(causal, "CHUNK", chunk)
        torch.testing.assert_close(autoencoder.encode(x), moments, rtol=0, atol=1e-12)
        torch.testing.assert_close(autoencoder.decode_raw(moments[:, :3]), pixels, rtol=0, atol=1e-12)
        assert longest <= 3 + 4 * chunk  # two frames that are kept, and in the first chunk frame 0
    for hook in hooks:
        hook.remove()


@torch.enable_grad()
def test_every_weight_is_used():
    autoencoder = new_causal(CONFIG, 2, 0).double()
    moments = autoencoder.encode(clip(5))
    decoded = autoencoder.decode_raw(autoencoder.raw_latent(moments, torch.randn_like(moments[:, :3])))
    decoded.square().mean().backward()
    for name, parameter in autoencoder.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().max() > 0, name


def test_a_strided_convolution_reads_as_conv3d_does_with_padding_before(autoencoder: CausalAutoencoder):
    layer, x = CausalConv3d(2, 3, stride=(2, 2)).double(), clip(7)
    before = torch.cat([torch.zeros(1, 2, 2, 8, 12, dtype=torch.float64), x], dim=2)
    weight, bias = layer.convolution.weight, layer.convolution.bias
    expected = torch.nn.functional.conv3d(before, weight, bias, stride=2, padding=(0, 1, 1))
    torch.testing.assert_close(layer(x), expected)
    assert layer(x).shape[2] == 4


@pytest.mark.parametrize(
    ("frames", "words"), [(4, "nearest: 1 or 5"), (16, "nearest: 13 or 17"), (0, "nearest: 1 or 5")]
)
def test_other_numbers_of_frames_are_refused(autoencoder: CausalAutoencoder, frames: int, words: str):
    with pytest.raises(UserError, match=rf"clips of {frames} frames .* takes 1 \+ 4 n; {words}"):
        autoencoder.latent_shape((frames, 8, 12))
    with pytest.raises(UserError, match=words):
        autoencoder.encode(clip(frames))


def test_time_is_halved_between_the_last_levels():
    assert temporal_strides(4, 4) == [1, 2, 2]
    assert temporal_strides(4, 1) == [1, 1, 1]
    for factor in (3, 8, 0):
        with pytest.raises(UserError, match=rf"--autoencoder.time-factor {factor} must be a power of two, at most 4"):
            temporal_strides(3, factor)
