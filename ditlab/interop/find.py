"""Find a model: a run, a shipped model, a folder of a diffusers pipeline, or one on the hub."""

from __future__ import annotations

import re
from pathlib import Path

from ditlab.interop import diffusers_pipeline, hub
from ditlab.pipelines import Pipeline

HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")


def find_model(name: str | Path) -> Pipeline:
    """Load a model from a run folder, a ``model.safetensors``, a shipped model's name or a folder of a DiTPipeline.

    Or from the hub by its id, ``user/name``, unless a folder ``user`` exists or user is ``runs``.
    UserError: the model is missing or cannot be read.
    """
    folder = Path(name)
    if (folder / diffusers_pipeline.INDEX).is_file():
        return diffusers_pipeline.read(folder)
    local = folder.exists() or folder.parent.exists() or folder.parts[:1] == ("runs",)  # or a mistyped run
    if HUB_ID.fullmatch(str(name)) and not local:
        return find_model(hub.download(str(name)))
    return Pipeline.load(name)
