"""Centre crop and pad against a direct computation."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from ditlab.data.transforms import centre_crop, centre_pad


def adm_reference(image: Image.Image, size: int) -> np.ndarray:
    """ADM's square crop: the number of halvings in closed form, then one bicubic step, then the middle."""
    halvings = max(0, (min(image.size) // size).bit_length() - 1)
    for _ in range(halvings):
        image = image.resize((image.width // 2, image.height // 2), Image.Resampling.BOX)
    factor = size / min(image.width, image.height)
    image = image.resize((round(image.width * factor), round(image.height * factor)), Image.Resampling.BICUBIC)
    left, top = (image.width - size) // 2, (image.height - size) // 2
    return np.asarray(image.crop((left, top, left + size, top + size)))


@pytest.mark.parametrize(("height", "width"), [(50, 37), (16, 16), (17, 90), (8, 5), (33, 32), (64, 200)])
@pytest.mark.parametrize("size", [4, 16])
def test_square_crop_is_adm(pixels, height: int, width: int, size: int) -> None:
    image = pixels(0, height, width)
    assert np.array_equal(centre_crop(image, (size, size)), adm_reference(Image.fromarray(image), size))


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
@pytest.mark.parametrize(("height", "width"), [(5, 9), (9, 5), (7, 7), (40, 3)])
def test_any_rectangle_and_channels(pixels, channels: int, height: int, width: int) -> None:
    assert centre_crop(pixels(1, 31, 23, channels), (height, width)).shape == (height, width, channels)


def test_rectangle_keeps_proportions() -> None:
    """A centred disc stays round when a wide image is cut to a tall one."""
    rows, columns = np.mgrid[:64, :128]
    disc = ((rows - 31.5) ** 2 + (columns - 63.5) ** 2 < 20**2).astype(np.uint8)[..., None] * 255
    small = centre_crop(disc, (32, 20))[:, :, 0] > 127
    assert abs(int(small.any(axis=0).sum()) - int(small.any(axis=1).sum())) <= 1
    assert small.any(axis=0).sum() == 20


def test_own_shape_is_untouched(pixels) -> None:
    image = pixels(2, 12, 7)
    assert np.array_equal(centre_crop(image, (12, 7)), image)
    assert np.array_equal(centre_pad(image, (12, 7)), image)


def test_wide_image_of_the_right_height_is_only_cut(pixels) -> None:
    image = pixels(3, 8, 15)
    assert np.array_equal(centre_crop(image, (8, 8)), image[:, 3:11])


def test_pad_centres_on_black(pixels) -> None:
    image = np.maximum(pixels(4, 3, 4), 1)
    padded = centre_pad(image, (6, 8))
    assert np.array_equal(padded[1:4, 2:6], image)
    assert (padded > 0).sum() == image.size


def test_pad_refuses_to_shrink(pixels) -> None:
    with pytest.raises(ValueError, match="9x4 is larger than 8x8"):
        centre_pad(pixels(5, 9, 4), (8, 8))
