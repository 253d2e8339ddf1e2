"""The model file, seeds to images, and pictures of them."""

from ditlab.sample.generate import denoising, gather, generate, in_order, label_indices, to_images
from ditlab.sample.model import Model, SampleConfig
from ditlab.sample.pictures import check_ending, filmstrip, grid, write, write_png

__all__ = [
    "Model",
    "SampleConfig",
    "check_ending",
    "denoising",
    "filmstrip",
    "gather",
    "generate",
    "grid",
    "in_order",
    "label_indices",
    "to_images",
    "write",
    "write_png",
]
