"""What the metrics detect and what they do not: altered real images, measured against other real images.

    python benchmarks/blind.py --json benchmarks/results/blind.json --picture docs/pictures/blind.png

No model is involved. 10,000 training images of FashionMNIST are split in halves: one is the reference, the other is altered
and measured against it. The picture shows eight images of each row.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageFilter
from rich.console import Console
from rich.table import Table

from ditlab.data import DataConfig, Dataset, open_data
from ditlab.data.arrays import ArraySource
from ditlab.evaluate import Evaluator, extract_features, feature_network
from ditlab.pipelines import grid, write_png

HALF, BATCH, SHOWN = 5_000, 256, 8


def blurred(images: np.ndarray, radius: float) -> np.ndarray:
    """Images uint8 (N, H, W, 1) with a Gaussian blur."""
    drawn = [Image.fromarray(image[..., 0]).filter(ImageFilter.GaussianBlur(radius)) for image in images]
    return np.stack([np.asarray(image) for image in drawn])[..., None]


def noised(images: np.ndarray, deviation: float) -> np.ndarray:
    """Images uint8 with Gaussian noise added."""
    noise = np.random.default_rng(0).normal(scale=deviation, size=images.shape)
    return (images + noise).round().clip(0, 255).astype(np.uint8)


def alterations(real: np.ndarray, other: np.ndarray, labels: np.ndarray) -> dict[str, Callable[[], np.ndarray]]:
    """By name, functions that return the measured images uint8 (N, H, W, 1); ``labels`` (N,) are of the ``other`` half."""
    few = np.random.default_rng(0).permutation(len(other))[: len(other) // 10]
    return {
        "other real images": lambda: other,
        "noise of 2 levels of 255": lambda: noised(other, 2),
        "noise of 8 levels": lambda: noised(other, 8),
        "blur of half a pixel": lambda: blurred(other, 0.5),
        "blur of a pixel": lambda: blurred(other, 1.0),
        "one pixel to the right": lambda: np.roll(other, 1, axis=2),
        "5% brighter": lambda: (other * 1.05).round().clip(0, 255).astype(np.uint8),
        "no sneakers": lambda: other[labels != 7],
        "a tenth of them, ten times": lambda: np.tile(other[few], (10, 1, 1, 1)),
        "the real images themselves": lambda: real,
    }


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--picture", type=Path)
    given = parser.parse_args()
    data = open_data(DataConfig(source="fashion", limit=2 * HALF)).load()
    pixels, names = data.pixels.transpose(0, 2, 3, 1), data.names
    real, other = pixels[:HALF], pixels[HALF:]
    network = feature_network("efficientnet-lite0", (28, 28))
    source = ArraySource("half of the images", real, data.labels[:HALF], names)
    evaluator = Evaluator.of(Dataset(source, DataConfig()), network)
    assert evaluator is not None
    rows, drawn = [], []
    for name, make in alterations(real, other, data.labels[HALF:]).items():
        images = make()
        features = extract_features(network, (images[start : start + BATCH] for start in range(0, len(images), BATCH)))
        assert features is not None
        rows.append(
            {"name": name, "numbers": {key: asdict(number) for key, number in evaluator.measure(features).items()}}
        )
        drawn.append(images[:SHOWN])
    table = Table(title=f"{HALF:,} images of FashionMNIST against {HALF:,} others", title_justify="left")
    for column in ("", *rows[0]["numbers"]):
        table.add_column(column, justify="right" if column else "left")
    for row in rows:
        table.add_row(row["name"], *(f"{number['value']:.4g}" for number in row["numbers"].values()))
    Console().print(table)
    if given.json:
        record = {"title": table.title, "torch": torch.__version__, "network": network.distance, "rows": rows}
        given.json.write_text(json.dumps(record, indent=1) + "\n")
    if given.picture:
        write_png(grid(np.concatenate(drawn), SHOWN, [row["name"] for row in rows]), given.picture)


if __name__ == "__main__":
    main()
