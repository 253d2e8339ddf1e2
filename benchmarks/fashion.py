"""Measures the shipped FashionMNIST model, writes its model card, and with --ship puts the model into the package.

    python benchmarks/fashion.py runs/fashion [--ship] [--json benchmarks/results/fashion.json]

Right class: the class that the five nearest real training images in pixels have; the first row is the accuracy on real test
images. The other numbers are those of `ditlab evaluate`, against the 60,000 training images, for the samples and for as many
real test images.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
from sklearn.neighbors import KNeighborsClassifier

from ditlab.data import DataConfig, open_data
from ditlab.evaluate import Evaluator, Number, extract_features, feature_network
from ditlab.pipelines import Pipeline, grid, write_png
from ditlab.pipelines.shipped import FOLDER, MOST
from ditlab.train import read_metrics

BATCH = 250
Rows = dict[str, dict[str, Number]]


def flat(images: np.ndarray) -> np.ndarray:
    """Images (N, ...) as rows of numbers."""
    return images.reshape(len(images), -1).astype(np.float32) / 255


def measure(model: Pipeline, count: int) -> Rows:
    """Numbers of real test images, and of samples with and without guidance."""
    data = open_data(DataConfig(source="fashion"))
    train, test = data.load(), open_data(replace(data.config, split="test")).load()
    judge = KNeighborsClassifier(5).fit(flat(train.pixels), train.labels)
    evaluator = Evaluator.of(data, feature_network("efficientnet-lite0", (28, 28)))
    assert evaluator is not None

    def row(images: np.ndarray, labels: np.ndarray) -> dict[str, Number]:
        right = float((judge.predict(flat(images)) == labels).mean())
        seen = extract_features(
            evaluator.network, (images[start : start + BATCH] for start in range(0, len(images), BATCH))
        )
        assert seen is not None
        numbers = {"right class": Number(right, (right * (1 - right) / len(images)) ** 0.5), **evaluator.measure(seen)}
        found = evaluator.neighbours(seen)
        return numbers | (found.numbers if found is not None else {})

    rows = {"real": row(test.pixels[:count].transpose(0, 2, 3, 1), test.labels[:count])}
    labels = np.arange(count) % 10
    for guidance in (1.0, 1.5):
        images = model.sample([int(label) for label in labels], guidance=guidance, seed=1, batch=BATCH)
        rows[f"guidance {guidance:g}"] = row(images, labels)
    return rows


def card(model: Pipeline, command: str, psnr: float, rows: Rows, count: int) -> str:
    """The model card."""
    network = sum(parameter.numel() for parameter in model.network.parameters())
    autoencoder = sum(parameter.numel() for parameter in model.autoencoder.parameters())
    names = {"real": "real test images", "guidance 1": "samples, no guidance", "guidance 1.5": "samples, guidance 1.5"}
    columns = [name for name in rows["real"] if not name.startswith("c")]  # copies and closeness have their own line
    shares = ("right class", "precision", "recall")
    table = [
        f"| {names[name]} | "
        + " | ".join(f"{row[c].value:.1%}" if c in shares else str(row[c]) for c in columns)
        + " |"
        for name, row in rows.items()
    ]
    unguided = rows["guidance 1"]
    copied = "; ".join(f"{name} {unguided[name]}" for name in unguided if name.startswith("c"))
    return f"""# fashion

A class-conditional diffusion transformer for images of clothes, 28x28 pixels, greyscale: `ditlab sample fashion`. It works
in the latents of an autoencoder, which is included.

- Network: {network:,} parameters, 49 tokens of a 7x7x4 latent; autoencoder: {autoencoder:,} parameters.
  EMA weights in float16.
- Data: FashionMNIST's 60,000 training images (Zalando SE, MIT licence); {model.facts["images"]:,} images seen in training.
- Command: `{command}`.
- Autoencoder, PSNR on held-out images: {psnr:.2f} dB.
- Measured samples: {model.defaults.sampler}, {model.defaults.steps} steps, fp32, seed 1, equal classes, {count:,} per row.

| | {" | ".join(columns)} |
|{"---|" * (len(columns) + 1)}
{chr(10).join(table)}

*Right class*: the share of samples that a classifier (the five nearest real training images in pixels) assigns to the class
of the label; the first row is its accuracy on real images. The other numbers are those of `ditlab evaluate`, for
{count:,} images against the 60,000 training images, in features of EfficientNet-Lite0 at 64 pixels. They are not FID. More
samples give a lower distance.

Memorisation of the samples without guidance (new images have 0.5 closer and 0.01 copies):
{copied}.

Written by `python benchmarks/fashion.py RUN --ship`. Intended use: demonstrations and tests. The model generates only images
like FashionMNIST's. Licence of the weights: Apache-2.0, as all of ditlab.
"""


def main() -> None:
    """Measure; with --ship write the model and its card into the package."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path)
    parser.add_argument("--ship", action="store_true")
    parser.add_argument("--count", type=int, default=10_000)
    parser.add_argument("--command", default="ditlab train fashion", help="the training command, for the card")
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    run, folder = given.run, FOLDER / "fashion"
    model = Pipeline.load(run)
    if given.ship:
        model.save(folder, half=True)
        model = Pipeline.load(folder)  # measure the shipped weights
        size = sum(path.stat().st_size for path in folder.iterdir())
        assert size <= MOST, f"{size:,} bytes are too many"
    psnr = [row["psnr"] for row in read_metrics(run.with_name(f"{run.name}-autoencoder")) if "psnr" in row][-1]
    rows = measure(model, given.count)
    page = card(model, given.command, psnr, rows, given.count)
    print(page)
    if given.ship:
        (folder / "README.md").write_text(page)
    if given.json:
        numbers = {name: {key: asdict(number) for key, number in row.items()} for name, row in rows.items()}
        record = {"psnr": psnr, "count": given.count, "rows": numbers}
        given.json.write_text(json.dumps(record, indent=2) + "\n")
    images = model.sample([label for label in range(10) for _ in range(10)], seed=0)
    write_png(grid(images, 10, model.names), run / "card.png")


if __name__ == "__main__":
    main()
