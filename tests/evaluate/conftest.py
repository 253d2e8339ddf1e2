"""A small feature network, and real images for it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from ditlab.data import DataConfig, Dataset, open_data
from ditlab.evaluate.features import FeatureNetwork


class Projection(FeatureNetwork):
    """Random projections of the pixels: all kinds of features, and a count of its input images."""

    name, distance, width, side, resize = "projection", "FD-Projection@8", 12, 8, "averaged"

    def __init__(self, everything: bool = False) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.pooled, self.spatial, self.classes = (nn.Linear(192, width) for width in (self.width, 5, 4))
        self.everything, self.shown = everything, 0
        self.eval().requires_grad_(False)

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor | None, Tensor | None]:
        self.shown += len(pixels)
        x = (
            F.adaptive_avg_pool2d(pixels, self.side).flatten(1) / 32
        )  # so large that no feature is a rounding of another
        if self.everything:
            return self.pooled(x), self.spatial(x), self.classes(x).softmax(1)
        return self.pooled(x), None, None


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache folder."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "ditlab" / "features"


@pytest.fixture
def projection() -> Projection:
    return Projection()


@pytest.fixture
def complete() -> Projection:
    """With spatial features and probabilities, as Inception has."""
    return Projection(everything=True)


@pytest.fixture(scope="session")
def digits() -> np.ndarray:
    """Uint8 (1797, 8, 8, 1)."""
    return open_data(DataConfig()).load().pixels.transpose(0, 2, 3, 1)


@pytest.fixture
def real(cache: Path) -> Dataset:
    """601 digits."""
    return open_data(DataConfig(limit=601))


@pytest.fixture(scope="session")
def draw() -> Callable[[np.ndarray, Path], Path]:
    """Write images uint8 (N, H, W, C) as PNGs into a folder."""

    def write(images: np.ndarray, folder: Path) -> Path:
        folder.mkdir(parents=True, exist_ok=True)
        for index, image in enumerate(images):
            Image.fromarray(image[..., 0] if image.shape[2] == 1 else image).save(folder / f"{index:04d}.png")
        return folder

    return write
