"""What the shipped FashionMNIST model is worth: measured, written into its card, and the model put into the package.

    python benchmarks/fashion.py runs/fashion [--ship] [--json benchmarks/results/fashion.json]

Right class: five nearest real training images in pixels name the class that was asked for; the same judge's score on real
test images stands beside. Precision and recall: three nearest neighbours in pixels, 10,000 samples against 10,000 test
images (Kynkaanniemi et al. 2019); beside them 10,000 training images against the same.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
from sklearn.neighbors import KNeighborsClassifier

from ditlab.data import DataConfig, Images, open_data
from ditlab.evaluate import precision_recall
from ditlab.sample import Model, grid, write_png
from ditlab.sample.shipped import FOLDER, MOST
from ditlab.train import read_metrics


def flat(pixels: np.ndarray) -> np.ndarray:
    """Images (N, ...) as rows of numbers."""
    return pixels.reshape(len(pixels), -1).astype(np.float32) / 255


def measure(model: Model, train: Images, test: Images, count: int) -> dict[str, dict[str, float]]:
    """Right class, precision and recall of real images, and of samples with and without guidance."""
    judge = KNeighborsClassifier(5).fit(flat(train.pixels), train.labels)
    real = flat(test.pixels)[:count]
    some = flat(train.pixels)[:count]

    def row(images: np.ndarray, labels: np.ndarray) -> dict[str, float]:
        precision, recall = precision_recall(real, images)
        right = float((judge.predict(images) == labels).mean())
        return {"right class": right, "precision": float(precision), "recall": float(recall)}

    score = float((judge.predict(real) == test.labels[:count]).mean())
    rows = {"real": {**row(some, train.labels[:count]), "right class": score}}
    labels = np.arange(count) % 10
    for guidance in (1.0, 1.5):
        made = model.sample([int(label) for label in labels], guidance=guidance, seed=1, batch=250)
        rows[f"guidance {guidance:g}"] = row(flat(made.transpose(0, 3, 1, 2)), labels)
    return rows


def card(model: Model, command: str, psnr: float, rows: dict[str, dict[str, float]], count: int) -> str:
    """The model card."""
    network = sum(parameter.numel() for parameter in model.network.parameters())
    autoencoder = sum(parameter.numel() for parameter in model.autoencoder.parameters())
    names = {"real": "real images", "guidance 1": "made, no guidance", "guidance 1.5": "made, guidance 1.5"}
    table = [
        f"| {names[name]} | {row['right class']:.1%} | {row['precision']:.3f} | {row['recall']:.3f} |"
        for name, row in rows.items()
    ]
    return f"""# fashion

A class-conditional diffusion transformer for pictures of clothes, 28x28, grey: `ditlab sample fashion`.

- Network: {network:,} parameters, 49 tokens of a 7x7x4 latent; autoencoder: {autoencoder:,} parameters.
  Averaged weights, in float16.
- Data: FashionMNIST's 60,000 training images (Zalando SE, MIT licence); {model.facts["images"]:,} images seen in training.
- Command: `{command}`.
- Autoencoder on held-out images: {psnr:.2f} dB.
- Samples measured: {model.defaults.sampler}, {model.defaults.steps} steps, fp32, seed 1, labels in turn, {count:,} a row.

| | right class | precision | recall |
|---|---|---|---|
{chr(10).join(table)}

Right class: the five nearest real training images in pixels name the class that was asked for; the first row is how often
that judge is right on real test images. Precision and recall: three nearest neighbours in pixels, against {count:,} test
images; the first row is of training images. Pixels are a poor space for likeness: the numbers are for comparing rows.

Made by `python benchmarks/fashion.py RUN --ship`. Good for demonstrations and tests; it knows nothing but FashionMNIST.
Weights: Apache-2.0, as all of ditlab.
"""


def main() -> None:
    """Measure, and with --ship put the model and its card into the package."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path)
    parser.add_argument("--ship", action="store_true")
    parser.add_argument("--count", type=int, default=10_000)
    parser.add_argument("--command", default="ditlab train fashion", help="what made the run, for the card")
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    run, folder = given.run, FOLDER / "fashion"
    model = Model.load(run)
    if given.ship:
        model.save(folder, half=True)
        model = Model.load(folder)  # what is measured is what ships
        size = sum(path.stat().st_size for path in folder.iterdir())
        assert size <= MOST, f"{size:,} bytes are too many"
    data = DataConfig(source="fashion")
    train, test = open_data(data).load(), open_data(replace(data, split="test")).load()
    psnr = [row["psnr"] for row in read_metrics(run.with_name(f"{run.name}-autoencoder")) if "psnr" in row][-1]
    rows = measure(model, train, test, given.count)
    page = card(model, given.command, psnr, rows, given.count)
    print(page)
    if given.ship:
        (folder / "README.md").write_text(page)
    if given.json:
        given.json.write_text(json.dumps({"psnr": psnr, "count": given.count, "rows": rows}, indent=2) + "\n")
    images = model.sample([label for label in range(10) for _ in range(10)], seed=0)
    write_png(grid(images, 10, model.names), run / "card.png")


if __name__ == "__main__":
    main()
