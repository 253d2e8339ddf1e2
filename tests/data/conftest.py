"""Tiny real images, as arrays and as files."""

from __future__ import annotations

from collections.abc import Callable
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image


def make_pixels(seed: int, height: int = 6, width: int = 6, channels: int = 3) -> np.ndarray:
    """Random uint8 (H, W, C)."""
    return np.random.default_rng(seed).integers(0, 256, (height, width, channels), np.uint8)


def make_bytes(pixels: np.ndarray, kind: str = "PNG") -> bytes:
    """An encoded image of uint8 (H, W, C)."""
    buffer = BytesIO()
    Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels).save(buffer, kind)
    return buffer.getvalue()


@pytest.fixture
def pixels() -> Callable[..., np.ndarray]:
    return make_pixels


@pytest.fixture
def encode() -> Callable[..., bytes]:
    return make_bytes


@pytest.fixture
def photos() -> dict[str, bytes]:
    """Relative name -> PNG bytes: two classes of 6x6 RGB images, one of them nested."""
    names = ["cat/a.png", "cat/b.PNG", "dog/c.png", "dog/deep/d.png", "dog/e.png"]
    return {name: make_bytes(make_pixels(seed)) for seed, name in enumerate(names)}


@pytest.fixture
def write() -> Callable[[Path, dict[str, bytes]], Path]:
    """Write relative names -> bytes under a folder and return it."""

    def write_files(folder: Path, files: dict[str, bytes]) -> Path:
        for name, content in files.items():
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
        return folder

    return write_files
