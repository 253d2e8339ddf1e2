"""Every mode of image file comes out as the channels asked for, and broken ones say why."""

from __future__ import annotations

import warnings
from io import BytesIO

import numpy as np
import pytest
from PIL import ExifTags, Image, PngImagePlugin

from ditlab.data import decode
from ditlab.data.decode import DecodeError, array_to_channels, decode_image, image_shape


def save(image: Image.Image, kind: str = "PNG", **options) -> bytes:
    buffer = BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


@pytest.mark.parametrize(("mode", "native"), [("1", 1), ("L", 1), ("LA", 4), ("P", 3), ("RGB", 3), ("RGBA", 4)])
def test_modes(mode: str, native: int) -> None:
    encoded = save(Image.new("RGB", (5, 3), (200, 40, 90)).convert(mode))
    assert decode_image(encoded, 0).shape == (3, 5, native)
    for channels in (1, 3, 4):
        assert decode_image(encoded, channels).shape == (3, 5, channels)


@pytest.mark.parametrize("kind", ["PNG", "BMP", "GIF", "TIFF", "WEBP"])
def test_lossless_formats_are_exact(pixels, kind: str) -> None:
    image = np.repeat(pixels(0, 4, 7, 1), 3, axis=2)
    options = {"lossless": True} if kind == "WEBP" else {}
    assert np.array_equal(decode_image(save(Image.fromarray(image), kind, **options), 3), image)


def test_cmyk_jpeg_becomes_rgb() -> None:
    encoded = save(Image.new("RGB", (16, 16), (255, 0, 0)).convert("CMYK"), "JPEG", quality=95)
    red, green, blue = decode_image(encoded, 0).reshape(-1, 3).mean(axis=0)
    assert red > 230
    assert max(green, blue) < 30


def test_transparency_is_laid_on_white() -> None:
    image = Image.new("RGBA", (2, 1))
    image.putpixel((0, 0), (10, 20, 30, 255))
    image.putpixel((1, 0), (10, 20, 30, 0))
    assert decode_image(save(image), 3).tolist() == [[[10, 20, 30], [255, 255, 255]]]
    assert decode_image(save(image), 1)[0, 1].tolist() == [255]
    assert decode_image(save(image), 4)[0, 1, 3] == 0


def test_transparent_palette() -> None:
    palette = Image.new("P", (2, 1))
    palette.putpalette([0, 0, 0, 50, 60, 70])
    palette.putpixel((1, 0), 1)
    encoded = save(palette, transparency=b"\0\xff")
    assert decode_image(encoded, 0).shape == (1, 2, 4)
    assert decode_image(encoded, 3).tolist() == [[[255, 255, 255], [50, 60, 70]]]


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_sixteen_bits_are_scaled(kind: str) -> None:
    values = np.array([[0, 128, 129, 32896, 65535]], np.uint16)
    assert decode_image(save(Image.fromarray(values), kind), 0)[0, :, 0].tolist() == [0, 0, 1, 128, 255]
    assert decode_image(save(Image.fromarray(values), kind), 3).shape == (1, 5, 3)


@pytest.mark.parametrize("values", [np.full((2, 2), 70_000, np.int32), np.full((2, 2), 0.5, np.float32)])
def test_pixels_without_a_known_range_are_refused(values: np.ndarray) -> None:
    with pytest.raises(DecodeError, match="8 or 16 bits"):
        decode_image(save(Image.fromarray(values), "TIFF"), 0)


def test_exif_orientation() -> None:
    image = Image.new("L", (3, 2))
    image.putpixel((0, 0), 255)
    exif = Image.Exif()
    exif[0x0112] = 6  # shown turned a quarter clockwise
    turned = decode_image(save(image, "PNG", exif=exif), 0)
    assert turned.shape == (3, 2, 1)
    assert turned[0, 1, 0] == 255


def test_animation_gives_its_first_frame() -> None:
    frames = [Image.new("L", (2, 2), shade) for shade in (10, 200)]
    encoded = save(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert (decode_image(encoded, 1) == 10).all()


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "GIF", "TIFF"])
def test_truncated_files_are_unreadable(pixels, kind: str) -> None:
    whole = save(Image.fromarray(pixels(0, 40, 40)), kind)
    with pytest.raises(DecodeError) as caught:
        decode_image(whole[: len(whole) // 2], 3)
    assert str(caught.value)
    assert "\n" not in str(caught.value)
    assert " at 0x" not in str(caught.value)


def text_chunk(size: int) -> PngImagePlugin.PngInfo:
    info = PngImagePlugin.PngInfo()
    info.add_text("edits", "x" * size, zip=True)
    return info


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("PNG", {"pnginfo": text_chunk(80 * 2**20)}),  # more than Pillow allows by default
        ("PNG", {"icc_profile": b"no profile"}),
        ("JPEG", {"icc_profile": b"no profile"}),
        ("JPEG", {"exif": b"Exif\0\0damaged"}),
        ("JPEG", {"exif": b"Exif\0\0MM\0*\xff\xff\xff\xff"}),
        ("WEBP", {"exif": b"Exif\0\0II*\0"}),
        ("TIFF", {"tiffinfo": {65000: "a camera's own tag"}}),
    ],
)
def test_metadata_of_any_size_and_damage_is_not_the_images(capfd, kind: str, options) -> None:
    encoded = save(Image.new("RGB", (5, 3), (200, 40, 90)), kind, **options)
    with warnings.catch_warnings(record=True) as warned:
        assert decode_image(encoded, 0).shape == image_shape(encoded) == (3, 5, 3)
    assert not warned
    assert capfd.readouterr() == ("", "")


def test_as_many_pixels_as_a_camera_makes(monkeypatch) -> None:
    image = save(Image.new("1", (20_000, 9_000)))  # 180 million: an error in Pillow by default
    assert image_shape(image) == (9_000, 20_000, 1)
    monkeypatch.setattr(decode, "MAX_PIXELS", 10**8)
    with pytest.raises(DecodeError, match="20000x9000 are more than 100 million pixels"):
        image_shape(image)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_headers_give_the_shape_of_the_pixels(orientation: int) -> None:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    for mode in ("L", "RGB"):
        encoded = save(Image.new(mode, (8, 4)), "JPEG", exif=exif)
        assert image_shape(encoded) == decode_image(encoded, 0).shape
    for mode in ("1", "L", "LA", "P", "RGB", "RGBA", "I;16"):
        encoded = save(Image.new(mode, (5, 3)))
        assert image_shape(encoded) == decode_image(encoded, 0).shape


def test_what_is_no_image(monkeypatch) -> None:
    with pytest.raises(DecodeError, match="empty"):
        decode_image(b"", 3)
    with pytest.raises(DecodeError, match="not an image"):
        decode_image(b"<html>not found</html>", 3)
    encoded = save(Image.new("L", (40, 40)))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(DecodeError, match="1600 pixels"):
        decode_image(encoded, 1)


def test_arrays_convert_as_files_do(pixels, encode, refuses) -> None:
    for present in (1, 3, 4):
        image = pixels(0, 4, 5, present)
        for channels in (1, 3, 4):
            assert np.array_equal(array_to_channels(image, channels), decode_image(encode(image), channels))
    two = pixels(0, 4, 5, 2)
    assert array_to_channels(two, 0) is two
    refuses(lambda: array_to_channels(two, 3), "2 channels", "3")
