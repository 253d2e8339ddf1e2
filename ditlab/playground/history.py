"""Runs and studies under a folder, as they lie there at the moment."""

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

DEEPEST = 5  # folders below the one that is looked through
PICTURES = 24  # of a run, at most, spread over its time
PASSED_OVER = {"checkpoints", "samples", "latents", "cells"}


@dataclass(frozen=True)
class Run:
    """A run, as its files tell.

    Attributes:
        name: its folder, relative to the one that was looked through.
        folder: where it is.
        state: training, finished or stopped.
        rows: of its metrics, those with a loss.
        total: images it is to be trained on; 0 where that is not known.
    """

    name: str
    folder: Path
    state: str
    rows: tuple[dict, ...]
    total: int

    @property
    def images(self) -> int:
        """Trained on so far."""
        return int(self.rows[-1]["images"]) if self.rows else 0


def find_runs(root: Path) -> dict[str, Run]:
    """Every run below a folder, by name; those that changed last come first."""
    found = [folder for folder, files in _folders(root) if "recipe.json" in files and METRICS in files]
    found.sort(key=lambda folder: _changed(folder / METRICS), reverse=True)
    runs = [_run(folder, root) for folder in found]
    return {run.name: run for run in runs if run is not None}


def find_studies(root: Path) -> dict[str, Path]:
    """The folders of studies with a report, below a folder, by name."""
    found = {_name(folder, root): folder for folder, files in _folders(root) if {"plan.json", "report.md"} <= files}
    return dict(sorted(found.items()))


def sample_pictures(run: Run) -> list[tuple[Image.Image, str]]:
    """A run's sample grids through its time, each with how many images it had been trained on."""
    paths = sorted((run.folder / "samples").glob("[0-9]*.png"))
    chosen = (
        [paths[k] for k in sorted(set(np.linspace(0, len(paths) - 1, PICTURES).round().astype(int)))] if paths else []
    )
    opened = [(_opened(path), f"{int(path.stem):,} images") for path in chosen if path.stem.isdecimal()]
    return [(picture, words) for picture, words in opened if picture is not None]


def sample_count(run: Run) -> int:
    """How many sample grids a run has."""
    return sum(1 for _ in (run.folder / "samples").glob("[0-9]*.png"))


def evaluations(run: Run) -> list[dict]:
    """What ``ditlab evaluate`` wrote of a run, the oldest first; damaged lines are passed over."""
    path, found = run.folder / "evaluation" / "results.jsonl", []
    for line in path.read_text(errors="replace").splitlines() if path.is_file() else ():
        try:
            found.append(json.loads(line))
        except ValueError:
            continue
    parts = ("how", "numbers")
    return [one for one in found if isinstance(one, dict) and all(isinstance(one.get(part), dict) for part in parts)]


def study_report(folder: Path) -> tuple[str, list[tuple[Image.Image, str]]]:
    """A study's report without its figures, and these with what they show."""
    text, figures = (folder / "report.md").read_text(errors="replace"), []
    for words, target in re.findall(r"!\[([^\]]*)\]\(([\w.-]+\.png)\)", text):
        picture = _opened(folder / target)
        if picture is not None:
            figures.append((picture, words))
    return re.sub(r"!\[[^\]]*\]\([^)]*\)\n*", "", text), figures


def _changed(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:  # gone since
        return 0.0


def _run(folder: Path, root: Path) -> Run | None:
    """A run; nothing where it has gone since it was found."""
    try:
        file = (folder / METRICS).stat()
        rows = _rows(folder, file.st_mtime_ns, file.st_size)
    except (OSError, UnicodeDecodeError):
        return None
    try:
        total = int(json.loads((folder / "recipe.json").read_text())["train"]["images"])
    except (OSError, ValueError, KeyError, TypeError):
        total = 0
    finished = (folder / "report.md").exists()
    state = "training" if files.is_locked(folder) else "finished" if finished else "stopped"
    return Run(_name(folder, root), folder, state, rows, total)


@lru_cache(1024)
def _rows(folder: Path, changed: int, size: int) -> tuple[dict, ...]:  # noqa: ARG001 - what the file was like when it was read
    """A run's rows with a loss; read anew when the file has changed, not at every look of every open page."""
    return tuple(row for row in read_metrics(folder) if isinstance(row, dict) and _whole(row))


def _whole(row: dict) -> bool:
    return all(isinstance(row.get(name), int | float) for name in ("images", "loss", "images_per_second"))


def _folders(root: Path) -> Iterator[tuple[Path, set[str]]]:
    """Folders below one with the names of their files; what lies in checkpoints and the like is left out, links too."""
    for place, folders, names in os.walk(root):
        folder = Path(place)
        depth = len(folder.relative_to(root).parts)
        folders[:] = sorted(
            name for name in folders if name not in PASSED_OVER and not name.startswith(".") and depth < DEEPEST
        )
        yield folder, set(names)


def _name(folder: Path, root: Path) -> str:
    name = str(folder.relative_to(root))
    return folder.resolve().name if name == "." else name


def _opened(path: Path) -> Image.Image | None:
    """A picture; nothing where it is gone or cannot be read."""
    try:
        with Image.open(path) as picture:
            return picture.convert("RGB")
    except (OSError, UnidentifiedImageError, ValueError):
        return None
