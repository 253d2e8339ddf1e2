"""Clips as animated pictures, and as strips of frames."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import ExifTags, Image

from ditlab.pipelines.pictures import grid
from ditlab.runtime import files

ANIMATED = (".webp", ".gif", ".apng")
FPS = 8.0  # of clips whose data set has no rate


def write_animation(
    clips: np.ndarray, columns: int, path: Path, settings: Mapping[str, object], captions: Sequence[str] = (),
    fps: float = FPS,
) -> None:  # fmt: skip
    """Write clips uint8 (N, F, H, W, C) as one grid that plays in a loop; the ending of ``path`` is one of ``ANIMATED``.

    The settings are in it as JSON: in the EXIF tag ImageDescription of a webp or apng, in the comment of a gif.

    Raises:
        UserError: the disk is full or the place cannot be written.
    """
    frames = [grid(clips[:, index], columns, captions=captions) for index in range(clips.shape[1])]
    files.write_file(path, animation(frames, path.suffix, settings, fps))


def animation(frames: Sequence[Image.Image], ending: str, settings: Mapping[str, object], fps: float = FPS) -> bytes:
    """Pictures of one size as a .webp (lossless), .gif or .apng that plays in a loop at ``fps``."""
    buffer, exif, text = io.BytesIO(), Image.Exif(), json.dumps(settings)
    exif[ExifTags.Base.ImageDescription] = text
    kind = {".webp": "WEBP", ".gif": "GIF", ".apng": "PNG"}[ending]
    own = {
        "WEBP": {"lossless": True, "exif": exif},
        "GIF": {"comment": text},
        "PNG": {"exif": exif, "default_image": False},
    }
    first, *others = frames
    first.save(
        buffer, kind, save_all=True, append_images=others, duration=round(1000 / fps), loop=0, **own[kind]
    )  # fmt: skip
    return buffer.getvalue()
