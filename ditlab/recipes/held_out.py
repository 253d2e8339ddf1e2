"""Images that are measured on and not trained on: of the test split, if the data has one."""

from __future__ import annotations

import io
import json
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from ditlab.data import Images, open_data
from ditlab.data.source import Once
from ditlab.encoders import Autoencoder, LatentCache, uint8_to_float
from ditlab.errors import UserError
from ditlab.recipes.recipe import AutoencoderRecipe, Recipe
from ditlab.runtime import files
from ditlab.train.monitor import HELD_OUT_IMAGES

HELD_OUT = "held-out.npz"  # in a cache of latents


def held_out_images(recipe: Recipe | AutoencoderRecipe, images: Images, limit: int, once: Once) -> tuple[Images, str]:
    """Images to measure on: of the test split if the data has one, otherwise the first training images."""
    try:
        held_out = open_data(replace(recipe.data, split="test", limit=limit), once).load()
    except UserError as error:
        first = slice(0, limit)
        captions = None if images.captions is None else images.captions[first]
        few = replace(images, pixels=images.pixels[first], labels=images.labels[first], captions=captions)
        return few, f"{len(few):,} training images, since none are held out ({error})"
    return held_out, f"{len(held_out):,} images of the test split"


@dataclass(frozen=True)
class _Encoded:
    """Moments of a few images, as ``LatentCache`` reads them."""

    moments: np.ndarray
    labels: np.ndarray
    captions: list[tuple[str, ...]]
    fingerprint: str = ""

    def __len__(self) -> int:
        return len(self.moments)

    def read(self, indices: np.ndarray, flips: np.ndarray) -> np.ndarray:
        return self.moments[indices]


def held_out_data(
    recipe: Recipe, data: Images | LatentCache, cache: Path, once: Once
) -> tuple[Images | LatentCache, str]:
    """What the held-out loss is of: images of the test split if the data has one, otherwise of the training set."""
    if isinstance(data, Images):
        return held_out_images(recipe, data, HELD_OUT_IMAGES, once)
    with np.load(cache / HELD_OUT) as stored:
        moments, labels, what = stored["moments"], stored["labels"], str(stored["what"])
        captions = json.loads(str(stored["captions"])) if "captions" in stored else []
    if not len(moments):
        return data, f"{min(len(data), HELD_OUT_IMAGES):,} training images, since {what}"
    return _Encoded(moments, labels, [tuple(each) for each in captions]), what  # type: ignore[return-value]


def encode_held_out(recipe: Recipe, cache: Path, autoencoder: Autoencoder, device: torch.device) -> None:
    """Encode a few images of the test split into the cache, or note that there are none: later starts touch no image."""
    path = cache / HELD_OUT
    if path.exists():
        return
    autoencoder.to(device)
    moments, labels, captions = [], np.empty(0, np.int64), []
    try:
        images = open_data(replace(recipe.data, split="test", limit=HELD_OUT_IMAGES)).load()
    except UserError as error:
        what = f"none are held out ({error})"
    else:
        what, labels, captions = f"{len(images):,} images of the test split", images.labels, list(images.captions or ())
        with torch.no_grad():
            for start in range(0, len(images), 8):
                pixels = uint8_to_float(images.pixels[start : start + 8], device)
                moments.append(autoencoder.encode(pixels).float().cpu().numpy())
    buffer = io.BytesIO()
    encoded = np.concatenate(moments) if moments else labels
    np.savez(buffer, moments=encoded, labels=labels, what=what, captions=json.dumps(captions))
    files.write_file(path, buffer.getvalue())
