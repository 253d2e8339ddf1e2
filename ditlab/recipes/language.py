"""How well a model follows its prompts: the loss of true against other captions, and the tasks of rendered scenes and clips."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch

from ditlab.data import DataConfig, Dataset, open_data
from ditlab.diffusion import Positions
from ditlab.errors import UserError
from ditlab.evaluate import bouncing, scenes
from ditlab.evaluate.scenes import TaskScores
from ditlab.models import Condition
from ditlab.pipelines import Pipeline, SampleConfig, gather
from ditlab.recipes.prepare import Log
from ditlab.runtime import files
from ditlab.runtime.console import markdown_table
from ditlab.runtime.distributed import Processes
from ditlab.train.tasks import at_fixed_times

LANGUAGE = "language.json"  # in the folder of an evaluation
IMAGES = 1024  # whose captions' loss is measured, at most
BATCH = 64
JUDGES = {"scenes": scenes.measure, "bouncing": bouncing.measure}  # by the data that a model was trained on


@dataclass(frozen=True)
class CaptionLoss:
    """Mean loss of real images under their own captions, those of other images, and none, of the same noise and times."""

    own: float
    other: float
    none: float
    preferred: float  # share of images whose loss is lower under their own caption than under the other
    images: int
    of: str  # where the images are from

    def table(self) -> list[str]:
        """Lines of a Markdown table."""
        spread = (self.preferred * (1 - self.preferred) / self.images) ** 0.5
        preferred = f"{100 * self.preferred:.1f} ± {100 * spread:.1f}"
        row = (f"{self.own:.5f}", f"{self.other:.5f}", f"{self.none:.5f}", preferred)
        return markdown_table(("own caption", "another image's", "no caption", "own is lower, % of images"), [row])


@dataclass(frozen=True)
class Language:
    """What was measured; None where it does not apply."""

    loss: CaptionLoss | None
    tasks: TaskScores | None
    settings: dict[str, str]

    def lines(self) -> list[str]:
        """As Markdown."""
        loss = (
            [] if self.loss is None else [f"Loss of {self.loss.images:,} {self.loss.of}:", "", *self.loss.table(), ""]
        )
        tasks = [] if self.tasks is None else ["Samples that show what the prompt says:", "", *self.tasks.table(), ""]
        return [*loss, *tasks]

    def to_json(self) -> str:
        """As one JSON value."""
        tasks = None if self.tasks is None else json.loads(self.tasks.to_json())
        loss = None if self.loss is None else asdict(self.loss)
        return json.dumps({"settings": self.settings, "loss": loss, "tasks": tasks}, indent=2) + "\n"


def measure_language(
    model: Pipeline, data: DataConfig | None, config: SampleConfig, count: int, *, seed: int, batch: int,
    settings: dict[str, str], out: Path, processes: Processes, log: Log,
) -> Language:  # fmt: skip
    """Measure a model of prompts and write ``language.json`` into ``out``.

    Args:
        model: that takes prompts.
        data: its images; None where they are not known, and only what needs none is measured.
        config: how it is sampled.
        count: prompts of each task; 0 for none.
        seed: of prompts and images.
        batch: images at a time.
        settings: what the numbers depend on besides these.
        out: the folder.
        processes: that share the work.
        log: gets lines for the user.
    """
    loss, tasks = None, None
    dataset, of = _held_out(data, log)
    if dataset is not None:
        try:  # one process is enough: it takes a few passes of a thousand images
            loss = processes.broadcast_from_main(lambda: caption_loss(model, dataset, of))
        except UserError as error:
            log(f"the loss under other captions is skipped: {error}")
    if data is not None and data.source in JUDGES and count:

        def generate(prompts: list[str]) -> np.ndarray:
            return _everywhere(model, prompts, seed, config, batch, processes)

        tasks = JUDGES[data.source](generate, count, seed)
    language = Language(loss, tasks, settings)
    if processes.is_main:
        files.write_file(out / LANGUAGE, language.to_json())
    return language


def caption_loss(model: Pipeline, dataset: Dataset, of: str = "images") -> CaptionLoss:
    """The loss of up to ``IMAGES`` captioned images, at eight times in turn.

    The other caption is that of another image whose caption differs.

    Raises:
        UserError: there are no two different captions.
    """
    images = dataset.load()
    captions = [each[0] if each else "" for each in images.captions or ()]
    rows = [row for row, caption in enumerate(captions) if caption.strip()][:IMAGES]
    own = [captions[row] for row in rows]
    losses = _losses(model, np.moveaxis(images.pixels[rows], 1, -1), (own, _differing(own), [""] * len(own)))
    own_mean, other, none = losses.mean(axis=1).tolist()
    return CaptionLoss(own_mean, other, none, float((losses[0] < losses[1]).mean()), len(rows), of)


@torch.inference_mode()
def _losses(model: Pipeline, images: np.ndarray, captions: Sequence[Sequence[str]]) -> np.ndarray:
    """The loss of each image uint8 (N, H, W, C), or clip (N, F, H, W, C), under each of K captions, (K, N).

    Noise and times are the same under all.
    """
    assert model.text is not None
    loss = model.diffusion.build_loss().to(model.device)
    draws = at_fixed_times(loss, loss.draw(Positions(0, 0, len(images)), model.network.spec.latent.shape))
    found = []
    for start in range(0, len(images), BATCH):
        rows = slice(start, start + BATCH)
        x0 = model.encode(images[rows])
        some = {name: value[rows].to(model.device) for name, value in draws.items()}
        conditions = [Condition.of_text(*model.text.encode(texts[rows])).to(model.device) for texts in captions]
        found.append(np.stack([loss(model.network, x0, each, some).cpu().numpy() for each in conditions]))
    return np.concatenate(found, axis=1)


def _differing(captions: Sequence[str]) -> list[str]:
    """For each caption one of another image that differs: the nearest after half a turn."""
    if len(set(captions)) < 2:
        raise UserError("all captions are the same: there is no other caption to compare with")
    count = len(captions)
    return [
        next(other for k in range(count) if (other := captions[(row + count // 2 + k) % count]) != own)
        for row, own in enumerate(captions)
    ]


def _held_out(data: DataConfig | None, log: Log) -> tuple[Dataset | None, str]:
    """The captioned images to measure the loss on: of the test split, otherwise of the training split."""
    if data is None:
        return None, ""
    for split, of in (("test", "images of the test split"), ("train", "training images, since none are held out")):
        try:
            dataset = open_data(replace(data, split=split, limit=min(data.limit or 4 * IMAGES, 4 * IMAGES)))
        except UserError as error:
            log(f"{split} split: {error}")
            continue
        if dataset.captions is not None:
            return dataset, of
    return None, ""


def _everywhere(
    model: Pipeline, prompts: list[str], seed: int, config: SampleConfig, batch: int, processes: Processes
) -> np.ndarray:
    """The images of prompts in every process."""
    images = gather(model.batches(prompts, seed, len(prompts), config, batch, processes), processes)
    return processes.broadcast_from_main(lambda: images)
