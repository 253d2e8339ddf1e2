"""What sampling returns: images that notebooks show, and the steps on the way to them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
from PIL import Image
from torch import Tensor

from ditlab.pipelines.pictures import grid, png, single

SHOWN = 64  # images of a notebook's picture, at most


class ImageArray(np.ndarray):
    """A NumPy array of images uint8 (N, H, W, C), or clips (N, F, H, W, C), that notebooks show as a grid."""

    def _repr_png_(self) -> bytes | None:
        """A PNG of one image (H, W, C) or of the first 64; None for any other array."""
        if self.dtype != np.uint8 or self.ndim not in (3, 4, 5) or not self.size or self.shape[-1] > 4:
            return None
        images = np.asarray(self if self.ndim > 3 else self[None])[:SHOWN]
        return png(grid(images, max(1, round(len(images) ** 0.5))))


def to_pil(images: np.ndarray) -> list[Image.Image]:
    """Images uint8 (N, H, W, C) as Pillow images."""
    return [single(np.asarray(image)) for image in images]


@dataclass(frozen=True)
class Step:
    """A finished sampling step of N images; notebooks show the predicted images.

    Attributes:
        index: of the step, from 1 to ``steps``.
        steps: of the whole sampling.
        t: the time reached, from 1 (noise) to 0 (data).
        first: index of the first of the images; above 0 in the later batches of ``Pipeline.sample``.
        x: the current sample, latents (N, c, h, w).
        x0: the clean sample that the model predicts, latents (N, c, h, w).
    """

    index: int
    steps: int
    t: float
    first: int
    x: Tensor = field(repr=False)
    x0: Tensor = field(repr=False)
    _decode: Callable[[Tensor], ImageArray] = field(repr=False)

    @cached_property
    def images(self) -> ImageArray:
        """The current sample as images uint8 (N, H, W, C); decoded at first use."""
        return self._decode(self.x)

    @cached_property
    def predicted(self) -> ImageArray:
        """The predicted clean sample as images uint8 (N, H, W, C); decoded at first use."""
        return self._decode(self.x0)

    def _repr_png_(self) -> bytes | None:
        return self.predicted._repr_png_()
