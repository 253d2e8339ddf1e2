"""``ditlab data``: what a data set contains, before anything is trained."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from ditlab.cli.flags import parse
from ditlab.runtime.console import log

if TYPE_CHECKING:
    from PIL import Image

    from ditlab.data import Dataset

ROWS, COLUMNS = 8, 8  # of the picture
EXAMPLES = 4  # captions printed


def data(arguments: list[str]) -> None:
    """Print what a data set contains, with a picture; trains nothing."""
    from dataclasses import replace

    from ditlab.cli.data_options import DataOptions
    from ditlab.data import open_data
    from ditlab.data.captions import example
    from ditlab.data.opening import SOURCES

    options = parse(DataOptions, arguments, "data")
    known = options.path in SOURCES and options.path not in ("folder", "archive", "parquet")
    place = {"source": options.path} if known else {"path": options.path}
    config = replace(options.data, **place)
    size = config.size or (() if known else (64,))
    dataset = open_data(replace(config, size=size))
    for line in (dataset.describe(), *dataset.info.notes):
        log(line)
    for caption in _examples(dataset):
        log(f"caption: {example(caption)}")
    _draw(dataset, Path(options.out))
    if dataset.skipped:
        log(f"unreadable: {'; '.join(list(dataset.skipped.values())[:3])}")
    log(f"picture: {options.out}")


def _examples(dataset: Dataset) -> list[str]:
    """Captions of images evenly spaced over the set, each the first of its image."""
    present = [captions[0] for captions in dataset.captions or () if captions]
    step = max(1, len(present) // EXAMPLES)
    return present[::step][:EXAMPLES]


def _frames(dataset: Dataset) -> Image.Image:
    """Clips evenly spaced over the set, a row of frames each, with the caption."""
    import numpy as np

    from ditlab.pipelines import grid

    pixels, rows = dataset.read(np.unique(np.linspace(0, len(dataset) - 1, ROWS).astype(int)))
    shown = np.unique(np.linspace(0, pixels.shape[2] - 1, COLUMNS).astype(int))
    images = pixels[:, :, shown].transpose(0, 2, 3, 4, 1).reshape(-1, *pixels.shape[3:], pixels.shape[1])
    names = [] if dataset.captions is None else [dataset.captions[row][0] for row in rows.tolist()]
    return grid(images, len(shown), names, [f"frame {frame + 1}" for frame in shown])


def _draw(dataset: Dataset, out: Path) -> None:
    import numpy as np

    from ditlab.pipelines import grid, write_png

    if len(dataset.shape) == 4:
        write_png(_frames(dataset), out)
        return
    labels, names = dataset.labels, dataset.names
    present = [label for label in range(len(names)) if (labels == label).any()]
    chosen = np.unique(np.linspace(0, max(len(present) - 1, 0), ROWS).astype(int))
    rows = [np.flatnonzero(labels == present[k]) for k in chosen] if present else [np.arange(len(labels))]
    columns = min(COLUMNS, max(map(len, rows))) if present else min(COLUMNS, len(labels))
    count = columns if present else columns * min(ROWS, -(-len(labels) // columns))
    picture, captions = [], []
    for row in rows:
        pixels, kept = dataset.read(row[np.linspace(0, len(row) - 1, min(count, len(row))).astype(int)])
        blank = np.full((count - len(pixels), *dataset.shape), 255, np.uint8)
        picture.append(np.concatenate([pixels, blank]))
        if dataset.captions is not None:
            shown = [dataset.captions[index] for index in kept.tolist()]
            captions += [each[0] + f" (+{len(each) - 1})" * (len(each) > 1) if each else "" for each in shown]
            captions += [""] * len(blank)
    images = np.concatenate(picture).transpose(0, 2, 3, 1)
    write_png(grid(images, columns, [names[present[k]] for k in chosen] if present else (), captions=captions), out)
