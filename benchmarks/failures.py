"""Failures of the shipped FashionMNIST model: which samples are outside the manifold of real images, by class, and what the
same noise becomes with guidance.

    python benchmarks/failures.py --json benchmarks/results/failures.json --picture docs/pictures/failures.png

A sample is outside if no real image is as near to it as to its own third neighbour, as precision counts; its distance outside
is the smallest ratio of the two distances. The picture shows the farthest samples, below each the same noise with guidance 2,
the nearest training image, and that image encoded and decoded: the best that the decoder could do.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from ditlab import load
from ditlab.data import DataConfig, open_data
from ditlab.encoders import uint8_to_float
from ditlab.evaluate import Evaluator, extract_features, feature_network
from ditlab.evaluate.neighbours import nearest_neighbours, squared_distances
from ditlab.pipelines import Pipeline, grid, write_png

BATCH, SHOWN, K = 250, 16, 3
SCALES = (1.0, 1.5, 2.0)


def features(evaluator: Evaluator, images: np.ndarray) -> np.ndarray:
    """Pooled features (N, D) of images uint8 (N, H, W, C)."""
    extracted = extract_features(
        evaluator.network, (images[start : start + BATCH] for start in range(0, len(images), BATCH))
    )
    assert extracted is not None
    return extracted.features.pooled


def outside_ratio(generated: np.ndarray, real: np.ndarray) -> np.ndarray:
    """How far outside the real images each generated one is, (M,): above 1 is outside. Features (M, D) and (N, D)."""
    radii = np.concatenate([
        np.partition(squared_distances(real[rows : rows + 500], real), K, axis=1)[:, K] for rows in range(0, len(real), 500)
    ])  # fmt: skip
    ratios = [
        (squared_distances(generated[rows : rows + 500], real) / radii).min(axis=1)
        for rows in range(0, len(generated), 500)
    ]
    return np.concatenate(ratios) ** 0.5


def through_the_autoencoder(model: Pipeline, images: np.ndarray) -> np.ndarray:
    """Images uint8 (N, H, W, C) encoded and decoded."""
    with torch.no_grad():
        moments = model.autoencoder.encode(uint8_to_float(torch.from_numpy(images.transpose(0, 3, 1, 2).copy())))
        latents = model.autoencoder.latent(moments, torch.zeros(len(images), *model.autoencoder.latent_shape((28, 28))))
    return model.decode(latents)


def main() -> None:
    """Measure, print, draw."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=1_000)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--picture", type=Path)
    given = parser.parse_args()
    model, data = load("fashion"), open_data(DataConfig(source="fashion"))
    evaluator = Evaluator.of(data, feature_network("efficientnet-lite0", (28, 28)))
    assert evaluator is not None and evaluator.real is not None  # noqa: PT018
    real = evaluator.real.sample(10_000)
    labels = np.arange(given.count) % 10
    generated = {
        scale: model.sample([int(label) for label in labels], guidance=scale, seed=1, batch=BATCH) for scale in SCALES
    }
    far = {
        f"guidance {scale:g}": outside_ratio(features(evaluator, images), real) for scale, images in generated.items()
    }
    test = open_data(replace(data.config, split="test"))
    pixels, indices = test.read(np.arange(given.count))
    far["real test images"] = outside_ratio(features(evaluator, pixels.transpose(0, 2, 3, 1)), real)
    classes = dict.fromkeys(far, labels) | {"real test images": test.labels[indices]}

    table = Table(title=f"share outside the training images, %, of {given.count:,}", title_justify="left")
    table.add_column("class")
    for name in far:
        table.add_column(name, justify="right")
    shares = {
        title: {name: float((far[name][classes[name] == label] > 1).mean()) for name in far}
        for label, title in enumerate(data.names)
    }
    shares["all"] = {name: float((values > 1).mean()) for name, values in far.items()}
    for title, row in shares.items():
        table.add_row(title, *(f"{100 * share:.0f}" for share in row.values()))
    Console().print(table)
    unguided, guided = far["guidance 1"] > 1, far["guidance 2"] > 1
    both = float(guided[unguided].mean())
    print(
        f"of those outside without guidance, {both:.0%} are with guidance 2; of those inside, {guided[~unguided].mean():.0%}"
    )
    if given.picture is not None:
        worst = np.argsort(-far["guidance 1"])[:SHOWN]
        nearest, _ = nearest_neighbours(features(evaluator, generated[1.0][worst]), evaluator.real.pooled)
        closest = evaluator.real.images(nearest[:, 0])
        rows = [generated[1.0][worst], generated[2.0][worst], closest, through_the_autoencoder(model, closest)]
        names = ["generated", "guidance 2", "nearest", "decoded"]
        picture = grid(np.concatenate(rows), SHOWN, names, [data.names[labels[k]] for k in worst])
        write_png(picture, given.picture)
    if given.json is not None:
        given.json.parent.mkdir(parents=True, exist_ok=True)
        given.json.write_text(json.dumps({"outside": shares, "outside both": both}, indent=2) + "\n")


if __name__ == "__main__":
    main()
