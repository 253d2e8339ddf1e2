"""Find a model: a run, a shipped model, a folder of a diffusers pipeline, or one on the hub."""

from __future__ import annotations

import re
from pathlib import Path

from ditlab.errors import UserError
from ditlab.interop import diffusers_pipeline, hub
from ditlab.pipelines import Pipeline
from ditlab.pipelines.model_file import RECORD

HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
FOREIGN = (".pt", ".pth", ".ckpt", ".bin", ".safetensors")  # files that ``ditlab import`` reads


def find_model(name: str | Path) -> Pipeline:
    """Load a model from a run folder, a ``model.safetensors``, a shipped model's name or a folder of a DiTPipeline.

    Or from the hub by its id, ``user/name``, unless a folder ``user`` exists or user is ``runs``.
    UserError: the model is missing or cannot be read.
    """
    folder = _downloaded(name)
    if (folder / diffusers_pipeline.INDEX).is_file():
        return diffusers_pipeline.read(folder)
    if folder.is_file() and folder.suffix in FOREIGN and not (folder.parent / RECORD).is_file():
        raise UserError(f"{folder} is a checkpoint of other code; convert it first: ditlab import {folder} MODEL")
    if (folder / diffusers_pipeline.CONFIG).is_file() and not (folder / RECORD).is_file():
        diffusers_pipeline.check_transformer(diffusers_pipeline.record(folder / diffusers_pipeline.CONFIG), folder)
        raise UserError(
            f"{folder} is the transformer of a DiTPipeline without its VAE; convert it first: ditlab import {folder} MODEL"
        )
    return Pipeline.load(folder)


def find_folder(name: str | Path) -> Path:
    """The folder of other code's model, downloaded where ``name`` is a hub id. UserError: there is none."""
    folder = _downloaded(name)
    if not folder.is_dir():
        raise UserError(
            f"no checkpoint at {name}; those of DiT are dl.fbaipublicfiles.com/DiT/models/DiT-XL-2-256x256.pt and "
            "DiT-XL-2-512x512.pt"
        )
    return folder


def _downloaded(name: str | Path) -> Path:
    folder = Path(name)
    # Or a mistyped run or file.
    local = folder.exists() or folder.parent.exists() or folder.parts[:1] == ("runs",) or folder.suffix in FOREIGN
    return hub.download(str(name)) if HUB_ID.fullmatch(str(name)) and not local else folder
