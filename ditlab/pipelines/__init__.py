"""The model file, seeds to images, and pictures of them."""

from ditlab.pipelines.generate import (
    denoiser,
    denoising,
    gather,
    generate,
    in_order,
    interpolating,
    label_indices,
    to_images,
)
from ditlab.pipelines.pictures import check_ending, filmstrip, grid, png, single, strip, write, write_png, write_zip
from ditlab.pipelines.pipeline import Pipeline, SampleConfig

__all__ = [
    "Pipeline",
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
