"""Bring one image to a height and width: ADM's centre crop for any rectangle, or a black border."""

from __future__ import annotations

import numpy as np
from PIL import Image


def centre_crop(pixels: np.ndarray, height: int, width: int) -> np.ndarray:
    """Scale an image so that it just covers the target, then cut the centre.

    For a square target this is the preprocessing of ADM (Dhariwal and Nichol, 2021), which DiT uses: halve with a box
    filter while the image is at least twice the target, then one bicubic step. An image of the target's shape is
    returned unchanged.

    Args:
        pixels: uint8 (H, W, C).
        height: of the result, pixels.
        width: of the result, pixels.

    Returns:
        uint8 (height, width, C).
    """
    while pixels.shape[0] >= 2 * height and pixels.shape[1] >= 2 * width:
        pixels = _resize(pixels, pixels.shape[0] // 2, pixels.shape[1] // 2, Image.Resampling.BOX)
    rows, columns = pixels.shape[:2]
    scale = max(height / rows, width / columns)
    pixels = _resize(pixels, round(rows * scale), round(columns * scale), Image.Resampling.BICUBIC)
    top, left = (pixels.shape[0] - height) // 2, (pixels.shape[1] - width) // 2
    return pixels[top : top + height, left : left + width]


def centre_pad(pixels: np.ndarray, height: int, width: int) -> np.ndarray:
    """Centre an image on a black (for RGBA: transparent) border, never resampled.

    Args:
        pixels: uint8 (H, W, C), at most the target's size.
        height: of the result, pixels.
        width: of the result, pixels.

    Returns:
        uint8 (height, width, C).

    Raises:
        ValueError: the image is larger than the target.
    """
    rows, columns, channels = pixels.shape
    if rows > height or columns > width:
        raise ValueError(f"height {rows}, width {columns} is larger than height {height}, width {width}")
    padded = np.zeros((height, width, channels), np.uint8)
    top, left = (height - rows) // 2, (width - columns) // 2
    padded[top : top + rows, left : left + columns] = pixels
    return padded


def _resize(pixels: np.ndarray, height: int, width: int, resample: Image.Resampling) -> np.ndarray:
    """Pillow's resize of uint8 (H, W, C) with any C."""
    channels = pixels.shape[2]
    if pixels.shape[:2] == (height, width):
        return pixels
    if channels in (3, 4):
        return np.asarray(Image.fromarray(pixels).resize((width, height), resample))
    planes = [Image.fromarray(np.ascontiguousarray(pixels[:, :, channel])) for channel in range(channels)]
    return np.stack([np.asarray(plane.resize((width, height), resample)) for plane in planes], axis=2)
