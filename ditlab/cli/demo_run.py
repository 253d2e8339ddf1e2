"""What ``ditlab demo`` does: sample the shipped model, train on digits for as long as the machine allows, measure, draw."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Column, Table

from ditlab.data import Images, open_data
from ditlab.errors import UserError
from ditlab.evaluate import precision_recall
from ditlab.pipelines import Pipeline, Step, filmstrip, grid, write_png
from ditlab.recipes import Recipe, RunContext, find_recipe, train_recipe
from ditlab.runtime import files
from ditlab.runtime.console import markdown_table, progress_bar
from ditlab.train import read_metrics

COUNT = 1790  # samples to measure: 179 of each digit, nearly as many as there are real ones
GUIDANCE = 1.5
GAMMA: Any = 0.001  # of the classifier; its own type hints know only the words for it
SECONDS = 300.0  # the planned time of the whole demo; a minute of the six is a margin
SHORTEST = 64_000  # images; 97.2% of the samples are then in the right class
ROUND = 6_400  # the planned number of images is a multiple of this
COLUMNS = ("right class", "precision", "recall")


@dataclass(frozen=True)
class Scores:
    """Shares from 0 to 1: samples in the right class by a classifier, precision, recall."""

    right: float
    precision: float
    recall: float

    def cells(self) -> tuple[str, str, str]:
        """As the cells of a table."""
        return f"{self.right:.1%}", f"{self.precision:.3f}", f"{self.recall:.3f}"


def _features(images: np.ndarray) -> np.ndarray:
    """Digits uint8 (N, ...) as 64 numbers of 0 to 16, the space of the classifier and the metrics."""
    return images.reshape(len(images), -1) / 255 * 16


class Judge:
    """A support-vector classifier of real digits; ``held_out`` is its accuracy on a quarter it was not trained on."""

    def __init__(self, digits: Images):
        try:
            from sklearn.svm import SVC
        except ImportError as error:
            raise UserError("the demo needs scikit-learn: pip install 'ditlab[demo]'") from error
        self.real, labels = _features(digits.pixels), digits.labels
        order = np.random.default_rng(0).permutation(len(labels))
        test, train = order[: len(order) // 4], order[len(order) // 4 :]
        partial = SVC(gamma=GAMMA).fit(self.real[train], labels[train])
        self.held_out = float(partial.score(self.real[test], labels[test]))
        self.classifier = SVC(gamma=GAMMA).fit(self.real, labels)
        self.halves = self.real[order[::2]], self.real[order[1::2]]

    def measure(self, images: np.ndarray, labels: np.ndarray) -> Scores:
        """Scores of generated digits uint8 (N, 8, 8, 1) of the classes ``labels`` (N,)."""
        generated = _features(images)
        right = float((self.classifier.predict(generated) == labels).mean())
        return Scores(right, *precision_recall(self.real, generated))

    def floor(self) -> Scores:
        """Scores of real digits: one half measured against the other."""
        return Scores(self.held_out, *precision_recall(*self.halves))


@dataclass(frozen=True)
class Speeds:
    """Images/s of a machine in training, and in sampling without guidance with the recipe's sampler and steps."""

    training: float
    sampling: float

    def seconds(self, recipe: Recipe, images: int) -> float:
        """Time to train on ``images``, with the sample pictures on the way, and to sample what is measured."""
        pictures = 1 + images // recipe.train.samples
        measured = COUNT * (1 + 2)  # without guidance, and with it, which evaluates the network twice
        return images / self.training + (pictures * recipe.sample_images + measured) / self.sampling


def plan_images(recipe: Recipe, speeds: Speeds, spent: float) -> int:
    """Images to train on so that the demo, ``spent`` seconds after its start, takes at most ``SECONDS`` in total.

    At least ``SHORTEST`` and at most the recipe's number, which is its full length.
    """
    images = recipe.train.images
    while images > SHORTEST and spent + speeds.seconds(recipe, images) > SECONDS:
        images -= ROUND
    return min(recipe.train.images, max(images, SHORTEST))


def measure_speeds(recipe: Recipe, device: torch.device) -> Speeds:
    """Train on a few batches and sample some images, which takes seconds."""
    probe = replace(recipe.train, images=32 * recipe.train.batch, log=8 * recipe.train.batch)
    with tempfile.TemporaryDirectory() as folder:
        short = replace(recipe, train=probe, sample_images=10)
        model = train_recipe(short, RunContext(Path(folder) / "probe", device, lambda line: None))
        trained_per_second = read_metrics(Path(folder) / "probe")[-1]["images_per_second"]
    began = time.perf_counter()
    model.sample(count=128, batch=128)
    return Speeds(trained_per_second, 128 / (time.perf_counter() - began))


def _train_length(recipe: Recipe, out: Path, device: torch.device, began: float, log: Callable[[str], None]) -> Recipe:
    """The recipe at the length of the run in ``out``, or at one that is chosen for this machine."""
    if (out / "recipe.json").exists():
        earlier, _ = find_recipe(str(out))
        return replace(recipe, train=replace(recipe.train, images=earlier.train.images))
    speeds = measure_speeds(recipe, device)
    spent, full = time.perf_counter() - began, recipe.train.images
    images = plan_images(recipe, speeds, spent)
    shortened = f"of the recipe's {full:,}, to end in {SECONDS / 60:.0f} minutes"
    why = shortened if images < full else "the recipe's full length"
    log(
        f"this machine trains on {speeds.training:,.0f} images/s and samples {speeds.sampling:,.0f}: training on "
        f"{images:,} images ({why}), about {spent + speeds.seconds(recipe, images):,.0f} s in all"
    )
    return replace(recipe, train=replace(recipe.train, images=images))


def sample_shipped(out: Path, log: Callable[[str], None], device: torch.device) -> None:
    """Draw samples of the shipped FashionMNIST model, one class a row."""
    model = Pipeline.load("fashion").to(device)
    images = model.sample([label for label in range(10) for _ in range(5)], seed=0)
    settings = {"model": "fashion", "seed": 0, "steps": model.defaults.steps}
    write_png(grid(images, 5, model.names), out / "fashion.png", settings)
    log(f"samples of the shipped FashionMNIST model: {out / 'fashion.png'}")


def run_demo(
    out: Path, log: Callable[[str], None], device: torch.device, images: int = 0, count: int = COUNT
) -> dict[str, Scores]:
    """Train, or resume or reuse the run in ``out``; sample, measure and draw; log where the results are.

    ``images`` is the longest training (0: the recipe's number), ``count`` the number of samples to measure. Returns the
    scores of real digits, of samples, and of samples with guidance. Raises UserError if scikit-learn is missing.
    """
    began = time.perf_counter()
    recipe, _ = find_recipe("digits")
    recipe = replace(recipe, name="demo", train=replace(recipe.train, images=images or recipe.train.images))
    judge = Judge(open_data(recipe.data).load())
    sample_shipped(out, log, device)
    recipe = _train_length(recipe, out, device, began, log)
    log("training a diffusion transformer on 1,797 handwritten digits")
    model = train_recipe(recipe, RunContext(out, device, log))
    trained = time.perf_counter() - began
    classes = np.arange(count) % 10
    rows = {"real digits, one half against the other": judge.floor()}
    for name, scale in (("samples, no guidance", 1.0), (f"samples, guidance {GUIDANCE:g}", GUIDANCE)):
        samples = _samples(model, [int(label) for label in classes], scale)
        rows[name] = judge.measure(samples, classes)
        if scale == 1:
            shown = samples[:100].reshape(10, 10, 8, 8, 1).swapaxes(0, 1).reshape(100, 8, 8, 1)
            write_png(grid(shown, 10, [str(digit) for digit in range(10)]), out / "digits.png", {"seed": 1})
    write_png(filmstrip(model, ["3", "8"], 1, 2, model.defaults), out / "filmstrip.png", {"seed": 1})
    files.write_file(out / "demo.md", _page(rows, recipe.train.images, trained))
    headers = [Column(name, justify="right") for name in COLUMNS]
    table = Table("", *headers, title=f"{count:,} samples against 1,797 real digits", title_justify="left")
    for name, row in rows.items():
        table.add_row(name, *row.cells())
    Console().print(table)
    log("guidance raises precision (more samples look real) and lowers recall (less of the real variety is covered)")
    log(f"trained in {trained:.0f} s, measured and drawn in {time.perf_counter() - began - trained:.0f} s")
    pictures = ", ".join(str(out / f"{name}.png") for name in ("digits", "fashion", "filmstrip"))
    log(f"pictures: {pictures}  scores: {out / 'demo.md'}")
    return rows


def _samples(model: Pipeline, labels: list[int], scale: float) -> np.ndarray:
    """One image for each label, with a progress bar."""
    config = replace(model.defaults, guidance=replace(model.defaults.guidance, scale=scale))
    with progress_bar() as bar:
        task = bar.add_task("sampling", total=len(labels), rate="")

        def advance(step: Step) -> None:
            bar.advance(task, len(step.x) / step.steps)

        return np.concatenate(list(model.batches(labels, 1, len(labels), config, 256, callback=advance)))


def _page(rows: dict[str, Scores], images: int, seconds: float) -> str:
    table = "\n".join(markdown_table(("", *COLUMNS), [(name, *row.cells()) for name, row in rows.items()]))
    return f"""# Digits

`ditlab demo`: trained on {images:,} images in {seconds:.0f} s.

{table}
Right class: a support-vector classifier of real digits names the class that was given as the label; the first row is its
accuracy on held-out real digits. Precision and recall: nearest neighbours (k = 3) in pixels.

![samples, no guidance](digits.png)

![denoising](filmstrip.png)
"""
