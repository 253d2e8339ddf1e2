"""Train, sample, measure and study diffusion transformers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pathlib import Path

__version__ = "0.1.0"


def load(path: str | Path) -> Any:
    """A trained model, ``ditlab.pipelines.Pipeline``; ``load("fashion").sample()`` makes images.

    Args:
        path: a run folder, a ``model.safetensors``, the name of a model that ships, a folder of diffusers' DiTPipeline, or
            ``user/name`` on the hub. A folder of Stable Diffusion's VAE, as diffusers keeps it, gives the autoencoder alone.

    Raises:
        UserError: nothing readable there.
    """
    from ditlab.interop.find import find

    return find(path)
