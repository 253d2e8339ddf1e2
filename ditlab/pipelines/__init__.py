"""The model file, seeds to images, and pictures of them."""

from ditlab.pipelines.clips import ANIMATED, write_animation
from ditlab.pipelines.gather import gather, in_order
from ditlab.pipelines.images import ImageArray, Step
from ditlab.pipelines.pictures import filmstrip, grid, image_file, png, sample_grid, single, strip, write_png, write_zip
from ditlab.pipelines.pipeline import Pipeline
from ditlab.pipelines.sampling import SampleConfig, image_generator, image_generators
from ditlab.pipelines.sharded import weights_digest, write_samples

__all__ = [
    "ANIMATED", "ImageArray", "Pipeline", "SampleConfig", "Step", "filmstrip", "gather", "grid", "image_file",
    "image_generator", "image_generators", "in_order", "png", "sample_grid", "single", "strip", "weights_digest",
    "write_animation", "write_png", "write_samples", "write_zip",
]  # fmt: skip
