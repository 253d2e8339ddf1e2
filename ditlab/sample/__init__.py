"""The model file, seeds to images, and pictures of them."""

from ditlab.sample.generate import (
    denoiser,
    denoising,
    gather,
    generate,
    in_order,
    interpolating,
    label_indices,
    to_images,
)
from ditlab.sample.model import Model, SampleConfig
from ditlab.sample.pictures import check_ending, filmstrip, grid, png, single, strip, write, write_png, write_zip

__all__ = [
    "Model",
    "SampleConfig",
    "check_ending",
    "denoiser",
    "denoising",
    "filmstrip",
    "gather",
    "generate",
    "grid",
    "in_order",
    "interpolating",
    "label_indices",
    "png",
    "single",
    "strip",
    "to_images",
    "write",
    "write_png",
    "write_zip",
]
