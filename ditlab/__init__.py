"""Train, sample, measure and study diffusion transformers."""

__version__ = "0.1.0"
