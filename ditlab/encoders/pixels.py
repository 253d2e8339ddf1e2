"""Conversion between uint8 images and the floats in [-1, 1] that autoencoders and networks take."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor


def uint8_to_float(pixels: np.ndarray | Tensor, device: torch.device | str | None = None) -> Tensor:
    """uint8 (N, C, *size) as float32 in [-1, 1]: x / 127.5 - 1.

    ``device`` moves the images while they are still bytes; None leaves them where they are.
    """
    return torch.as_tensor(pixels).to(device).float().div_(127.5).sub_(1.0)


def float_to_uint8(pixels: Tensor) -> Tensor:
    """Floats (N, C, *size) in [-1, 1] as uint8: round((x + 1) * 127.5), values outside the range clamped."""
    return pixels.float().add(1).mul(127.5).round().clamp(0, 255).to(torch.uint8)
