"""Decode the bytes of an image file to uint8 (H, W, C), upright, with the channels asked for."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from io import BytesIO

import numpy as np
from PIL import ExifTags, Image, ImageOps, PngImagePlugin, UnidentifiedImageError

from ditlab.errors import UserError

MAX_PIXELS = 300_000_000  # above the largest cameras; beyond it a small file may fill the memory
_GRAY = ("1", "L", "I")
_TURNED = (5, 6, 7, 8)  # EXIF orientations that exchange height and width

# Pillow's own limits stop at a third of that, and at metadata of 1 MiB, which profiles and edit histories exceed.
Image.MAX_IMAGE_PIXELS = MAX_PIXELS
PngImagePlugin.MAX_TEXT_CHUNK = PngImagePlugin.MAX_TEXT_MEMORY = 256 * 2**20
warnings.filterwarnings("ignore", module="PIL")  # what matters is a DecodeError


class DecodeError(Exception):
    """One image cannot be decoded, and is skipped; the message is the reason, in one line."""


def decode_image(encoded: bytes, channels: int) -> np.ndarray:
    """Decode an image file (of an animation, the first frame) to uint8 (H, W, C), upright by its EXIF orientation.

    ``channels``: 1 grayscale, 3 RGB, 4 RGBA, 0 those of the file (a palette counts as RGB, transparency as RGBA). Raises a
    DecodeError for a file that is empty, truncated, not an image, larger than ``MAX_PIXELS``, or of pixels of no known range.
    """
    with _opened(encoded) as image:
        image.load()
        with suppress(Exception):  # damaged EXIF: the pixels are whole, their orientation is not known
            ImageOps.exif_transpose(image, in_place=True)
        return image_to_array(image, channels)


def image_shape(encoded: bytes) -> tuple[int, int, int]:
    """Height, width and channels that ``decode_image`` gives, from the header alone; a DecodeError as there."""
    with _opened(encoded) as image:
        width, height = image.size
        with suppress(Exception):
            if image.getexif().get(ExifTags.Base.Orientation, 1) in _TURNED:
                width, height = height, width
        return height, width, _own_channels(image)


@contextmanager
def _opened(encoded: bytes) -> Iterator[Image.Image]:
    """An image, closed afterwards; all errors within are DecodeErrors."""
    if not encoded:
        raise DecodeError("the file is empty")
    try:
        with Image.open(BytesIO(encoded)) as image:
            if image.width * image.height > MAX_PIXELS:
                raise DecodeError(f"{image.width}x{image.height} are more than {MAX_PIXELS / 1e6:.0f} million pixels")
            yield image
    except DecodeError:
        raise
    except UnidentifiedImageError as error:
        raise DecodeError("not an image that Pillow can read") from error
    except Exception as error:
        # Pillow's format plugins raise almost any exception on broken input.
        raise DecodeError(" ".join(str(error).split()) or type(error).__name__) from error


def _own_channels(image: Image.Image) -> int:
    return 4 if image.has_transparency_data else 1 if image.mode in _GRAY or image.mode.startswith("I;16") else 3


def image_to_array(image: Image.Image, channels: int) -> np.ndarray:
    """A Pillow image of any mode as uint8 (H, W, C); transparency is composited on white if ``channels`` has no alpha."""
    image = _eight_bit(image)
    channels = channels or _own_channels(image)
    if image.has_transparency_data:
        image = image.convert("RGBA")
        if channels != 4:
            image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    mode = {1: "L", 3: "RGB", 4: "RGBA"}[channels]
    pixels = np.asarray(image if image.mode == mode else image.convert(mode))
    return pixels.reshape(*image.size[::-1], channels)


def array_to_channels(pixels: np.ndarray, channels: int) -> np.ndarray:
    """uint8 (H, W, C) in ``channels`` channels, by the same conversions as files; 0 keeps them."""
    present = pixels.shape[2]
    if channels in (0, present):
        return pixels
    if present not in (1, 3, 4):
        raise UserError(f"images of {present} channels cannot be converted to {channels}; leave --data.channels at 0")
    return image_to_array(Image.fromarray(pixels[:, :, 0] if present == 1 else pixels), channels)


def _eight_bit(image: Image.Image) -> Image.Image:
    """16-bit grayscale scaled to 8 bits (Pillow would clip it); other modes unchanged."""
    if image.mode == "F":
        raise DecodeError("pixels are floats without a known range; save the image with 8 or 16 bits")
    if image.mode != "I" and not image.mode.startswith("I;16"):
        return image
    values = np.asarray(image).astype(np.int64)
    if values.min() < 0 or values.max() > 65535:
        raise DecodeError("pixels are 32-bit numbers beyond 16 bits; save the image with 8 or 16 bits")
    return Image.fromarray(((values + 128) // 257).astype(np.uint8))
