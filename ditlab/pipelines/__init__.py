"""The model file, seeds to images, and pictures of them."""

from ditlab.pipelines.generate import (
    denoiser,
    denoising,
    gather,
    generate,
    in_order,
    interpolating,
    label_indices,
    random_labels,
    to_images,
)
from ditlab.pipelines.pictures import filmstrip, grid, png, sample_grid, single, strip, write_png, write_zip
from ditlab.pipelines.pipeline import Pipeline, SampleConfig
from ditlab.pipelines.sharded import weights_digest, write_samples

__all__ = [
    "Pipeline",
    "SampleConfig",
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
    "random_labels",
    "sample_grid",
    "single",
    "strip",
    "to_images",
    "weights_digest",
    "write_png",
    "write_samples",
    "write_zip",
]
