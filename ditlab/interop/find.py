"""Models by whatever name they go: a run, a shipped model, a folder of diffusers', or one on the hub."""

from __future__ import annotations

import re
from pathlib import Path

from ditlab.encoders import DiffusersAutoencoder, load_pretrained
from ditlab.interop import diffusers_pipeline, hub
from ditlab.pipelines import Pipeline

HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")


def find_model(name: str | Path) -> Pipeline:
    """A model.

    Args:
        name: a run folder, a ``model.safetensors``, a shipped model's name, the folder of a diffusers DiTPipeline, or a
            model's id on the hub, ``user/name``, where there is no folder ``user`` and user is not ``runs``.

    Raises:
        UserError: nothing readable there.
    """
    folder = Path(name)
    if (folder / diffusers_pipeline.INDEX).is_file():
        return diffusers_pipeline.read(folder)
    here = folder.exists() or folder.parent.exists() or folder.parts[:1] == ("runs",)  # a mistyped run is not asked for
    if HUB_ID.fullmatch(str(name)) and not here:
        return find_model(hub.download(str(name)))
    return Pipeline.load(name)


def find(name: str | Path) -> Pipeline | DiffusersAutoencoder:
    """A model, as ``find_model``; or the autoencoder in a folder of Stable Diffusion's VAE, as diffusers keeps it.

    Raises:
        UserError: nothing readable there.
    """
    folder = Path(name)
    if (folder / "config.json").is_file() and not (folder / "model.json").is_file():
        return load_pretrained(str(folder))
    return find_model(name)
