"""Measures a model of emoji, writes its model card, and with --ship puts the model into the package.

    python benchmarks/emoji.py runs/emoji [--ship] [--json benchmarks/results/emoji.json]

Right emoji: the nearest real picture of the style, in features of EfficientNet-Lite0, is that of the prompt. Right style: of
the pictures of the prompt's emoji in all styles, the nearest has the prompt's style. The rows are prompts of the training
split, of emoji known in other styles only (split valid), and of emoji that no training picture shows (split test).
"""

from __future__ import annotations

import argparse
import json
import random
from pathlib import Path

import numpy as np

from ditlab.data import DataConfig, Dataset, open_data
from ditlab.data.emoji import EmojiSource
from ditlab.evaluate import FeatureNetwork, feature_network
from ditlab.pipelines import Pipeline, grid, write_png
from ditlab.pipelines.shipped import FOLDER, MOST
from ditlab.recipes.language import caption_loss

BATCH = 250
SPLITS = {"train": "training prompts", "valid": "known emoji, new style", "test": "new emoji"}
SHOWN = (  # prompts of the picture, of every style, and without one
    "noto style dragon face", "twemoji style red apple", "fluent style rocket", "blob style cat face", "emojione style pizza",
    "noto style sunflower", "twemoji style flag of japan", "fluent style octopus", "pink heart", "soccer ball",
)  # fmt: skip


class Emoji:
    """The pictures of all splits, and their features."""

    def __init__(self, size: tuple[int, int], network: FeatureNetwork):
        self.network, self.concepts, self.words, self.splits, pixels = network, [], [], [], []
        for split in SPLITS:
            dataset = open_split(split, size)
            assert isinstance(dataset.source, EmojiSource)
            self.concepts += dataset.source.concepts
            self.words += dataset.source.words
            self.splits += [split] * len(dataset)
            pixels.append(dataset.load().pixels.transpose(0, 2, 3, 1))
        self.pixels = np.concatenate(pixels)
        self.features = self.see(self.pixels)

    def see(self, images: np.ndarray) -> np.ndarray:
        """Features (N, D) of unit length."""
        parts = [self.network.extract(images[start : start + BATCH]).pooled for start in range(0, len(images), BATCH)]
        features = np.concatenate(parts)
        return features / np.linalg.norm(features, axis=1, keepdims=True)

    def rows(self, split: str, count: int) -> list[int]:
        """Pictures of a split, drawn at random."""
        rows = [row for row, name in enumerate(self.splits) if name == split]
        return random.Random(0).sample(rows, min(count, len(rows)))

    def score(self, images: np.ndarray, rows: list[int]) -> dict[str, float]:
        """Percent of images, made from the prompts of ``rows``, that are nearest to the emoji, and to the style, asked for."""
        near, words, concepts = self.see(images) @ self.features.T, np.array(self.words), np.array(self.concepts)
        ranks, styles = [], []
        for like, row in zip(near, rows, strict=True):
            same = words == words[row]
            ranks.append(int((like[same] > like[row]).sum()))
            others = np.flatnonzero(concepts == concepts[row])
            if len(others) > 1:
                styles.append(words[others[like[others].argmax()]] == words[row])
        top = {f"right emoji, {k} nearest": 100 * float(np.mean([rank < k for rank in ranks])) for k in (1, 10)}
        return {"prompts": len(rows), **top, "right style": 100 * float(np.mean(styles))}


def open_split(split: str, size: tuple[int, int]) -> Dataset:
    """The emoji of a split."""
    return open_data(DataConfig(source="emoji", size=size, split=split))


def measure(model: Pipeline, count: int) -> dict[str, dict[str, float]]:
    """Scores of real pictures through the autoencoder, and of samples, for each split."""
    height, width = model.size
    emoji = Emoji((height, width), feature_network("efficientnet-lite0", (height, width)))
    found: dict[str, dict[str, float]] = {}
    for split in SPLITS:
        rows = emoji.rows(split, count)
        prompts = [f"{emoji.words[row]} style {emoji.concepts[row]}" for row in rows]
        images = model.sample(prompts=prompts, seed=1, batch=64)
        losses = vars(caption_loss(model, open_split(split, (height, width))))
        found[split] = {
            **emoji.score(images, rows),
            **{f"loss, {name}": losses[name] for name in ("own", "other", "none")},
        }
    rows = emoji.rows("test", count)
    decoded = model.decode(model.encode(emoji.pixels[rows]))
    error = np.mean((decoded.astype(np.float64) - emoji.pixels[rows]) ** 2)
    found["autoencoder"] = {**emoji.score(decoded, rows), "psnr": float(10 * np.log10(255**2 / error))}
    return found


def card(model: Pipeline, command: str, found: dict[str, dict[str, float]], sources: list[str]) -> str:
    """The model card."""
    network = sum(parameter.numel() for parameter in model.network.parameters())
    autoencoder = sum(parameter.numel() for parameter in model.autoencoder.parameters())
    columns = [name for name in found["train"] if name != "prompts"]
    lines = [
        f"| {name} | {found[split]['prompts']} | " + " | ".join(_cell(c, found[split].get(c)) for c in columns) + " |"
        for split, name in (*SPLITS.items(), ("autoencoder", "new emoji, real, through the autoencoder"))
    ]
    size, latent = "x".join(map(str, model.size)), "x".join(map(str, model.network.spec.latent.shape))
    return f"""# emoji

A text-conditioned diffusion transformer for emoji in five styles, {size} pixels, colour:
`ditlab sample emoji --prompt "noto style dragon face"`. It works in the latents of an autoencoder, which is included, and reads
the words of its training captions: names of emoji, with or without "STYLE style", STYLE one of noto, blob, fluent, twemoji,
emojione.

- Network: {network:,} parameters, latents {latent}; autoencoder: {autoencoder:,} parameters, PSNR
  {found["autoencoder"]["psnr"]:.2f} dB on emoji held out. EMA weights in float16.
- Data: emoji of five npm packages, rendered on white, without skin tones; {model.facts["images"]:,} images seen in
  training.
- Command: {command}
- Measured samples: {model.defaults.sampler}, {model.defaults.steps} steps, guidance {model.defaults.guidance.scale:g}, fp32,
  seed 1.

| prompts | number | {" | ".join(columns)} |
|{"---|" * (len(columns) + 2)}
{chr(10).join(lines)}

*Right emoji*: among the real pictures of the style, that of the prompt is the nearest to the sample, or among the ten nearest,
in features of EfficientNet-Lite0 at 64 pixels. *Right style*: of the pictures of this emoji in all styles, that of the prompt's
style is nearest. *Loss*: of the split's real pictures under their own caption, another's, and none.

Licences of the pictures, which allow sharing weights trained on them:

{chr(10).join(f"- {source}" for source in sources)}

Written by `python benchmarks/emoji.py RUN --ship`. Intended use: demonstrations and tests. The model knows no words but those
of its captions. Licence of the weights: Apache-2.0, as all of ditlab.
"""


def _cell(column: str, value: float | None) -> str:
    if value is None:
        return ""
    return f"{value:.4f}" if column.startswith("loss") else f"{value:.1f}%"


def main() -> None:
    """Measure; with --ship write the model and its card into the package."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path)
    parser.add_argument("--ship", action="store_true")
    parser.add_argument("--count", type=int, default=300)
    parser.add_argument("--command", default="`ditlab train emoji`.", help="how it was trained, for the card")
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    run, folder = given.run, FOLDER / "emoji"
    model = Pipeline.load(run)
    if given.ship:
        model.save(folder, half=True)
        model = Pipeline.load(folder)  # measure the shipped weights
        size = sum(path.stat().st_size for path in folder.iterdir())
        assert size <= MOST, f"{size:,} bytes are too many"
    found = measure(model, given.count)
    notes = open_split("train", model.size).info.notes
    sources = [note.partition(" style: ")[2].partition(" emoji of ")[2] for note in notes if " style: " in note]
    page = card(model, given.command, found, sources)
    print(page)
    if given.ship:
        (folder / "README.md").write_text(page)
    if given.json:
        given.json.write_text(json.dumps(found, indent=2) + "\n")
    images = model.sample(prompts=list(SHOWN), seed=0, count=2 * len(SHOWN))
    write_png(grid(images, len(SHOWN)), run / "card.png")


if __name__ == "__main__":
    main()
