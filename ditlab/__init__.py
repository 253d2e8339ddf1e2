"""Train, sample, measure and study diffusion transformers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pathlib import Path

__version__ = "0.2.0"


def load(path: str | Path) -> Any:
    """Load a trained model, a ``ditlab.pipelines.Pipeline``: ``load("fashion").sample()`` returns images.

    Args:
        path: a run folder, a ``model.safetensors``, the name of a shipped model, a folder of a diffusers DiTPipeline, or
            ``user/name`` on the hub. A diffusers folder of a Stable Diffusion VAE gives the autoencoder alone.

    Raises:
        UserError: no readable model there.
    """
    from ditlab.interop.find import find

    return find(path)
