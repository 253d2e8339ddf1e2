import io

import numpy as np
import torch
from PIL import Image

from ditlab.encoders import Autoencoder
from ditlab.encoders.plane import plane_figure


class Shades(Autoencoder):
    """Decodes two numbers to a 4x4 RGB picture whose red is the first and whose blue the second."""

    def __init__(self) -> None:
        super().__init__(3, 2, 4)

    def decode_raw(self, raw: torch.Tensor) -> torch.Tensor:
        colours = torch.cat([raw[:, :1], torch.full_like(raw[:, :1], -1.0), raw[:, 1:]], dim=1)
        return colours.expand(-1, -1, 4, 4)


def test_the_decoded_grid_lies_as_its_axes_say_first_number_to_the_right_second_upwards():
    random = np.random.default_rng(0)
    coordinates = random.uniform(-1, 1, (500, 2)).astype(np.float32)
    drawn = plane_figure(Shades(), coordinates, random.integers(0, 3, 500), ("cat", "dog", "fish"))
    pixels = np.asarray(Image.open(io.BytesIO(drawn)).convert("RGB")).astype(int)
    height, width = pixels.shape[:2]
    inner = pixels[height // 4 : height * 3 // 4, width * 5 // 8 : width * 7 // 8]
    assert (inner[..., 1] == 0).all()  # within the sheet of decoded pictures
    red, blue = inner[..., 0].mean(axis=0), inner[..., 2].mean(axis=1)
    assert (np.diff(red) >= 0).all()
    assert red[-1] - red[0] > 60
    assert (np.diff(blue) <= 0).all()
    assert blue[0] - blue[-1] > 60


def test_a_plane_without_names_and_of_one_gray_channel_is_drawn():
    autoencoder = Autoencoder(1, 1, 1)

    class Sum(Autoencoder):
        def decode_raw(self, raw: torch.Tensor) -> torch.Tensor:
            return autoencoder.decode_raw(raw.sum(dim=1, keepdim=True)).expand(-1, -1, 2, 2)

    coordinates = np.random.default_rng(0).normal(size=(100, 2)).astype(np.float32)
    drawn = plane_figure(Sum(1, 2, 2), coordinates, np.zeros(100, np.int64), ())
    assert drawn.startswith(b"\x89PNG")
