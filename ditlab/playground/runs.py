"""Training runs and studies in a folder, read from their files."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from ditlab.runtime import files
from ditlab.train import read_metrics
from ditlab.train.meter import METRICS

MAX_DEPTH = 5  # of folders below the root
MAX_SAMPLES = 24  # sample images of a run, evenly spaced over its training
SKIPPED_FOLDERS = {"checkpoints", "samples", "latents", "cells"}


@dataclass(frozen=True)
class Run:
    """A training run.

    Attributes:
        name: its folder, relative to the root.
        folder: its path.
        state: training, finished, or stopped before its end.
        rows: its metrics, rows with a loss.
        images: number of images trained on so far.
        total_images: number of images to train on, whole batches; 0 if unknown.
        batch: images per step; 0 if unknown.
    """

    name: str
    folder: Path
    state: str
    rows: tuple[dict, ...]
    images: int
    total_images: int
    batch: int

    @property
    def progress(self) -> str:
        """Steps so far and in all: ``120 of 7,812 steps``; images where the recipe cannot be read."""
        if not self.batch:
            return f"{self.images:,} images"
        return f"{self.images // self.batch:,} of {self.total_images // self.batch:,} steps"


def find_runs(root: Path) -> dict[str, Run]:
    """All runs below a folder, by name, the most recently changed first."""
    folders = [folder for folder, names in _walk(root) if "recipe.json" in names and METRICS in names]
    folders.sort(key=lambda folder: _modified(folder / METRICS), reverse=True)
    runs = [_read_run(folder, root) for folder in folders]
    return {run.name: run for run in runs if run is not None}


def find_studies(root: Path) -> dict[str, Path]:
    """The folders of all studies with a report below a folder, by name."""
    found = {_name(folder, root): folder for folder, names in _walk(root) if {"plan.json", "report.md"} <= names}
    return dict(sorted(found.items()))


def sample_images(run: Run) -> list[tuple[Image.Image, str]]:
    """Sample grids of a run in training order, each with the number of images trained on as its caption."""
    paths = sorted((run.folder / "samples").glob("[0-9]*.png"))
    indices = sorted(set(np.linspace(0, len(paths) - 1, MAX_SAMPLES).round().astype(int))) if paths else []
    chosen = [paths[k] for k in indices if paths[k].stem.isdecimal()]
    opened = [(_open_image(path), f"{int(path.stem):,} images") for path in chosen]
    return [(image, caption) for image, caption in opened if image is not None]


def sample_count(run: Run) -> int:
    """The number of a run's sample grids."""
    return sum(1 for _ in (run.folder / "samples").glob("[0-9]*.png"))


def evaluations(run: Run) -> list[dict]:
    """The results of ``ditlab evaluate`` for a run, the oldest first; damaged lines are skipped."""
    path, found = run.folder / "evaluation" / "results.jsonl", []
    for line in path.read_text(errors="replace").splitlines() if path.is_file() else ():
        try:
            found.append(json.loads(line))
        except ValueError:
            continue
    keys = ("how", "numbers")
    return [row for row in found if isinstance(row, dict) and all(isinstance(row.get(key), dict) for key in keys)]


def study_report(folder: Path) -> tuple[str, list[tuple[Image.Image, str]]]:
    """A study's report without its figures, and the figures with their captions."""
    text, figures = (folder / "report.md").read_text(errors="replace"), []
    for caption, target in re.findall(r"!\[([^\]]*)\]\(([\w.-]+\.png)\)", text):
        image = _open_image(folder / target)
        if image is not None:
            figures.append((image, caption))
    return re.sub(r"!\[[^\]]*\]\([^)]*\)\n*", "", text), figures


def _modified(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:  # deleted since
        return 0.0


def _read_run(folder: Path, root: Path) -> Run | None:
    """A run; None if it was deleted meanwhile."""
    try:
        file = (folder / METRICS).stat()
        rows, images = _read_rows(folder, file.st_mtime_ns, file.st_size)
    except (OSError, UnicodeDecodeError):
        return None
    try:
        config = json.loads((folder / "recipe.json").read_text())["train"]
        batch = int(config["batch"])
        total = int(config["images"]) // batch * batch  # as TrainConfig.steps
    except (OSError, ValueError, KeyError, TypeError, ZeroDivisionError):
        total = batch = 0
    finished = (folder / "report.md").exists() and images >= total  # a resumed run keeps its earlier report
    state = "training" if files.is_locked(folder) else "finished" if finished else "stopped"
    return Run(_name(folder, root), folder, state, rows, images, total, batch)


@lru_cache(1024)
def _read_rows(folder: Path, modified: int, size: int) -> tuple[tuple[dict, ...], int]:  # noqa: ARG001 - keys of the cache
    """A run's metrics, rows with a loss, and the images of the last row; read again only after the file has changed."""
    rows = [row for row in read_metrics(folder) if isinstance(row, dict)]
    images = [row["images"] for row in rows if isinstance(row.get("images"), int)]
    return tuple(row for row in rows if _is_complete(row)), images[-1] if images else 0


def _is_complete(row: dict) -> bool:
    return all(isinstance(row.get(name), int | float) for name in ("images", "loss", "images_per_second"))


def _walk(root: Path) -> Iterator[tuple[Path, set[str]]]:
    """Folders below one with their file names; skips checkpoints and the like, and symbolic links."""
    for place, folders, names in os.walk(root):
        folder = Path(place)
        depth = len(folder.relative_to(root).parts)
        folders[:] = sorted(
            name for name in folders if name not in SKIPPED_FOLDERS and not name.startswith(".") and depth < MAX_DEPTH
        )
        yield folder, set(names)


def _name(folder: Path, root: Path) -> str:
    name = str(folder.relative_to(root))
    return folder.resolve().name if name == "." else name


def _open_image(path: Path) -> Image.Image | None:
    """An image; None if it is missing or damaged."""
    try:
        with Image.open(path) as image:
            return image.convert("RGB")
    except (OSError, UnidentifiedImageError, ValueError):
        return None
