"""``ditlab demo``: clothes by the model that ships, then the main job end to end: train on digits, make, measure, draw."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from ditlab.data import Images, open_data
from ditlab.errors import UserError
from ditlab.evaluate import precision_recall
from ditlab.pipelines import Pipeline, filmstrip, grid, write_png
from ditlab.recipes import RunContext, find_recipe, train_recipe
from ditlab.runtime import files
from ditlab.runtime.console import markdown_table
from ditlab.runtime.device import default_device

COUNT = 1790  # 179 of each digit, as nearly as many as there are real ones
GUIDANCE = 1.5
GAMMA: Any = 0.001  # of the classifier; its own type hints know only the words for it


@dataclass(frozen=True)
class Numbers:
    """Shares from 0 to 1: samples whose class a classifier names as asked, precision, recall."""

    right: float
    precision: float
    recall: float


def _features(images: np.ndarray) -> np.ndarray:
    """Digits uint8 (N, ...) as 64 numbers of 0 to 16, the classifier's and the metrics' space."""
    return images.reshape(len(images), -1) / 255 * 16


class Judge:
    """A support-vector classifier of real digits, and the real digits themselves.

    Attributes:
        held_out: share of real digits it names rightly that it was not trained on.
    """

    def __init__(self, digits: Images):
        try:
            from sklearn.svm import SVC
        except ImportError as error:
            raise UserError("the demo needs scikit-learn: pip install 'ditlab[demo]'") from error
        self.real, labels = _features(digits.pixels), digits.labels
        order = np.random.default_rng(0).permutation(len(labels))
        apart, rest = order[: len(order) // 4], order[len(order) // 4 :]
        self.held_out = float(
            SVC(gamma=GAMMA).fit(self.real[rest], labels[rest]).score(self.real[apart], labels[apart])
        )
        self.classifier = SVC(gamma=GAMMA).fit(self.real, labels)
        self.halves = self.real[order[::2]], self.real[order[1::2]]

    def measure(self, images: np.ndarray, labels: np.ndarray) -> Numbers:
        """Judge made digits uint8 (N, 8, 8, 1) that were asked to be ``labels`` (N,)."""
        made = _features(images)
        right = float((self.classifier.predict(made) == labels).mean())
        return Numbers(right, *precision_recall(self.real, made))

    def floor(self) -> Numbers:
        """What real digits get: one half of them judged by the other."""
        return Numbers(self.held_out, *precision_recall(*self.halves))


def _judge(model: Pipeline, judge: Judge, guidance: float) -> tuple[Numbers, np.ndarray]:
    labels = np.arange(COUNT) % 10
    images = model.sample([int(label) for label in labels], guidance=guidance, seed=1, batch=256)
    return judge.measure(images, labels), images


def show_shipped(out: Path, log: Callable[[str], None]) -> Path:
    """Draw what the shipped FashionMNIST model makes, a class a row: something to look at while training goes on."""
    model = Pipeline.load("fashion").to(default_device())
    images = model.sample([label for label in range(10) for _ in range(5)], seed=0)
    path = out / "fashion.png"
    write_png(grid(images, 5, model.names), path, {"model": "fashion", "seed": 0, "steps": model.defaults.steps})
    log(f"clothes made by the model that ships with ditlab: {path}")
    return path


def run_demo(out: Path, log: Callable[[str], None], images: int = 0) -> dict[str, Numbers]:
    """Train (or go on, or reuse what is in ``out``), sample, measure, draw; says the numbers and where the results are.

    Args:
        out: run folder.
        log: writes one line to the console.
        images: how many to train on; 0 is the recipe's number.

    Returns:
        The numbers of real digits, of made ones, and of made ones with guidance.

    Raises:
        UserError: scikit-learn is missing, or the disk is full.
    """
    began = time.perf_counter()
    recipe, _ = find_recipe("digits")
    recipe = replace(recipe, name="demo", train=replace(recipe.train, images=images or recipe.train.images))
    judge = Judge(open_data(recipe.data).load())
    show_shipped(out, log)
    log("training a diffusion transformer on 1,797 handwritten digits, about three minutes on two cores")
    model = train_recipe(recipe, RunContext(out, default_device(), log))
    trained = time.perf_counter() - began
    plain, made = _judge(model, judge, 1.0)
    guided, _ = _judge(model, judge, GUIDANCE)
    rows = {
        "real digits, one half against the other": judge.floor(),
        "made, no guidance": plain,
        f"made, guidance {GUIDANCE:g}": guided,
    }
    by_class = np.stack([made[np.arange(10) * 10 + digit] for digit in range(10)]).reshape(-1, 8, 8, 1)
    names = [str(digit) for digit in range(10)]
    write_png(grid(by_class, 10, names), out / "digits.png", {"seed": 1, "steps": model.defaults.steps})
    write_png(filmstrip(model, ["3", "8"], 1, 2, model.defaults), out / "filmstrip.png", {"seed": 1})
    files.write_file(out / "demo.md", _page(rows, trained))
    table = Table(title=f"{COUNT:,} made digits against 1,797 real ones", title_justify="left")
    for column in ("", "right class", "precision", "recall"):
        table.add_column(column, justify="left" if not column else "right")
    for name, row in rows.items():
        table.add_row(name, f"{row.right:.1%}", f"{row.precision:.3f}", f"{row.recall:.3f}")
    Console().print(table)
    log("guidance: more of the samples look real (precision), less of what is real gets made (recall)")
    log(f"trained in {trained:.0f} s, measured and drawn in {time.perf_counter() - began - trained:.0f} s")
    log(
        f"pictures: {out / 'digits.png'}, {out / 'fashion.png'}  denoising: {out / 'filmstrip.png'}  numbers: {out / 'demo.md'}"
    )
    return rows


def _page(rows: dict[str, Numbers], seconds: float) -> str:
    lines = ["# Digits", "", f"`ditlab demo`: trained in {seconds:.0f} s here.", ""]
    cells = [(name, f"{row.right:.1%}", f"{row.precision:.3f}", f"{row.recall:.3f}") for name, row in rows.items()]
    lines += markdown_table(("", "right class", "precision", "recall"), cells)
    lines += [
        "Right class: a support-vector classifier of real digits names the class that was asked for; the first row is its "
        "score on real digits held out. Precision and recall: nearest neighbours (k = 3) in pixels.",
        "",
        "![made digits, no guidance](digits.png)",
        "",
        "![denoising](filmstrip.png)",
        "",
    ]
    return "\n".join(lines)
