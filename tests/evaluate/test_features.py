"""What every feature network has in common, shown on a small one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from ditlab.evaluate.features import FeatureNetwork, Features, concatenate
from ditlab.evaluate.networks import NETWORKS, feature_network


class Small(FeatureNetwork):
    """A convolution, pooled; its "spatial" features are the pixels themselves."""

    name, distance, width, side = "small", "FD-Small", 16, 8

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.convolution, self.mix = nn.Conv2d(3, 64, 3), nn.Linear(64, 16)
        self.eval().requires_grad_(False)

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor, None]:
        return self.mix(self.convolution(pixels / 255).mean((2, 3))), pixels.permute(0, 2, 3, 1).contiguous(), None


def images(channels: int, count: int = 3) -> np.ndarray:
    return np.random.default_rng(channels).integers(0, 256, (count, 9, 7, channels), np.uint8)


def seen(pictures: np.ndarray) -> np.ndarray:
    """The RGB pixels that the network is shown."""
    spatial = Small().extract(pictures).spatial
    assert spatial is not None
    return spatial


def test_rgb_reaches_the_network_as_it_is():
    assert np.array_equal(seen(images(3)), images(3).astype(np.float32))


def test_grey_is_seen_as_three_equal_channels():
    assert np.array_equal(seen(images(1)), images(1).repeat(3, axis=3).astype(np.float32))


def test_transparent_images_are_seen_as_pillow_lays_them_on_white():
    colour, alpha = np.meshgrid(np.arange(256, dtype=np.uint8), np.arange(256, dtype=np.uint8))
    pictures = np.stack([colour, colour[::-1], colour.T, alpha], axis=2)[None]  # every colour at every opacity
    white = Image.new("RGBA", (256, 256), "white")
    expected = np.asarray(Image.alpha_composite(white, Image.fromarray(pictures[0])).convert("RGB"))
    assert np.array_equal(seen(pictures)[0], expected.astype(np.float32))


def test_features_are_float32_rows_in_the_order_of_the_images():
    network, pictures = Small(), images(3, 5)
    together = network.extract(pictures)
    assert together.pooled.shape == (5, network.width)
    assert together.pooled.dtype == np.float32
    assert together.probabilities is None
    assert len(together) == 5
    for index in range(5):
        alone = network.extract(pictures[index : index + 1])
        np.testing.assert_allclose(together.pooled[index], alone.pooled[0], rtol=1e-5, atol=1e-6)


def test_arrays_that_are_mapped_from_disk_or_are_views_are_taken(tmp_path: Path):
    np.save(tmp_path / "images.npy", images(3))
    mapped = np.load(tmp_path / "images.npy", mmap_mode="r")
    assert np.array_equal(seen(mapped), seen(images(3)))
    assert np.array_equal(seen(mapped[::-1, :, ::-1]), seen(images(3))[::-1, :, ::-1])


def test_precision_is_float32_whatever_the_caller_has_set():
    network, pictures = Small(), images(3)
    expected = network.extract(pictures).pooled
    try:
        torch.set_float32_matmul_precision("medium")
        with torch.autocast("cpu", torch.bfloat16):
            assert np.array_equal(network.extract(pictures).pooled, expected)
            assert network.mix(torch.ones(1, 64)).dtype == torch.bfloat16  # and the caller's settings are as they were
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision("highest")


def test_convolutions_and_products_are_not_rounded_to_tf32_and_the_settings_come_back():
    backends: Any = torch.backends
    places = (backends.cuda.matmul, backends.cudnn.conv, backends.mkldnn.matmul, backends.mkldnn.conv)

    def settings() -> list[str]:
        return [place.fp32_precision for place in places]

    inside: list[list[str]] = []
    before = settings()
    assert before[1] == "tf32"  # what has to be switched off
    network = Small()
    network.convolution.register_forward_hook(lambda *_: inside.append(settings()))
    network.extract(images(3))
    assert inside == [["ieee"] * 4]
    assert settings() == before

    def fail(*_: object) -> None:
        raise ZeroDivisionError

    network.convolution.register_forward_hook(fail)
    with pytest.raises(ZeroDivisionError):
        network.extract(images(3))
    assert settings() == before


@pytest.mark.parametrize(
    "wrong",
    [np.zeros((2, 8, 8, 3), np.float32), np.zeros((2, 8, 8, 2), np.uint8), np.zeros((8, 8, 3), np.uint8)],
    ids=["floats", "two channels", "one image"],
)
def test_other_arrays_are_refused_in_one_line(wrong: np.ndarray, refuses: Callable[..., str]):
    refuses(lambda: Small().extract(wrong), "uint8 (N, H, W, C)", str(wrong.dtype), str(wrong.shape))


def test_batches_are_joined_in_order():
    first = Features(np.zeros((2, 3)), np.zeros((2, 5)), np.zeros((2, 4)))
    second = Features(np.ones((1, 3)), np.ones((1, 5)), np.ones((1, 4)))
    whole = concatenate([first, second])
    assert whole.spatial is not None
    assert whole.probabilities is not None
    for joined, width in ((whole.pooled, 3), (whole.spatial, 5), (whole.probabilities, 4)):
        assert np.array_equal(joined, np.repeat([0.0, 0.0, 1.0], width).reshape(3, width))


def test_what_a_batch_lacks_the_whole_lacks():
    whole = concatenate([Features(np.zeros((2, 3)), np.zeros((2, 5))), Features(np.ones((1, 3)))])
    assert len(whole) == 3
    assert whole.spatial is None
    assert whole.probabilities is None


def test_an_unknown_network_is_answered_with_the_known_ones(refuses: Callable[..., str]):
    refuses(lambda: feature_network("incepton", (8, 8)), "'incepton'", "did you mean 'inception'?", *NETWORKS)


def test_weights_for_a_network_that_has_its_own_are_refused(refuses: Callable[..., str]):
    refuses(lambda: feature_network("efficientnet-lite0", (8, 8), weights="other.pth"), "other.pth", "wheel")
