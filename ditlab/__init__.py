"""Train, sample, measure and study diffusion transformers."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

    from ditlab.sample import Model

__version__ = "0.1.0"


def load(path: str | Path) -> Model:
    """A trained model from a run folder, a ``model.safetensors``, or one that ships; ``load("fashion").sample()`` makes images.

    Raises:
        UserError: nothing readable there.
    """
    from ditlab.sample import Model

    return Model.load(path)
