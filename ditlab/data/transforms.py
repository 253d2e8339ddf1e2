"""Bring one image to a size: ADM's centre crop for any rectangle, or a black border."""

from __future__ import annotations

import numpy as np
from PIL import Image


def centre_crop(pixels: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Scale an image so that it just covers ``size``, then cut the centre.

    For a square this is the preprocessing of ADM (Dhariwal and Nichol, 2021), which DiT uses: halve with a box filter
    while the image is at least twice the target, then one bicubic step. An image of the target's size is returned
    unchanged. uint8 (H, W, C) in, uint8 (*size, C) out.
    """
    while pixels.shape[0] >= 2 * size[0] and pixels.shape[1] >= 2 * size[1]:
        pixels = _resize(pixels, (pixels.shape[0] // 2, pixels.shape[1] // 2), Image.Resampling.BOX)
    rows, columns = pixels.shape[:2]
    scale = max(size[0] / rows, size[1] / columns)
    pixels = _resize(pixels, (round(rows * scale), round(columns * scale)), Image.Resampling.BICUBIC)
    top, left = (pixels.shape[0] - size[0]) // 2, (pixels.shape[1] - size[1]) // 2
    return pixels[top : top + size[0], left : left + size[1]]


def centre_pad(pixels: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Centre an image, uint8 (H, W, C), on a black (RGBA: transparent) background of ``size`` (H, W), not resampled."""
    rows, columns, channels = pixels.shape
    if rows > size[0] or columns > size[1]:
        raise ValueError(f"an image of {rows}x{columns} is larger than {size[0]}x{size[1]}")
    padded = np.zeros((*size, channels), np.uint8)
    top, left = (size[0] - rows) // 2, (size[1] - columns) // 2
    padded[top : top + rows, left : left + columns] = pixels
    return padded


def _resize(pixels: np.ndarray, size: tuple[int, int], resample: Image.Resampling) -> np.ndarray:
    """Pillow's resize of uint8 (H, W, C) with any C."""
    channels = pixels.shape[2]
    if pixels.shape[:2] == size:
        return pixels
    if channels in (3, 4):
        return np.asarray(Image.fromarray(pixels).resize((size[1], size[0]), resample))
    planes = [Image.fromarray(np.ascontiguousarray(pixels[:, :, channel])) for channel in range(channels)]
    return np.stack([np.asarray(plane.resize((size[1], size[0]), resample)) for plane in planes], axis=2)
