"""Callbacks of the loop: sample pictures, reconstructions and model files."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from ditlab.data import Images
from ditlab.encoders import Autoencoder, ChannelStatistics, float_to_uint8, record, uint8_to_float
from ditlab.encoders.plane import plane_figure
from ditlab.models import Network
from ditlab.pipelines import Pipeline, grid, sample_grid, write_png
from ditlab.runtime import files
from ditlab.runtime.distributed import Processes
from ditlab.train.config import TrainConfig
from ditlab.train.ema import EMA
from ditlab.train.task import Task

Row = dict[str, object]
ENCODED_AT_A_TIME = 256
STATISTICS_IMAGES = 20_000


@dataclass
class Event:
    """The state of training that callbacks get; ``task.module`` and ``ema.module`` may be sharded."""

    images: int  # trained on so far
    total: int  # to train on in all
    last: bool  # whether training is complete
    folder: Path  # of the run
    task: Task
    ema: EMA
    config: TrainConfig
    processes: Processes
    device: torch.device
    preview: bool = False  # whether a picture is drawn for the time that has passed, not for the number of images

    @cached_property
    def average(self) -> nn.Module:
        """The averaged module with all of its weights in this process; collective, so every process must read it."""
        return self.ema.whole()

    @property
    def picture(self) -> Path:
        """Where a picture of this moment goes."""
        return self.folder / "samples" / f"{'preview-' * self.preview}{self.images:012d}.png"


class Callback:
    """Hooks of the training loop; a subclass overrides those it needs.

    Every process calls every hook, and only ``event.processes.is_main`` should write. Except for ``on_step``, the time they
    take does not count as training time.
    """

    def on_step(self, event: Event) -> None:
        """After every step. Reading a tensor here makes each step wait for the GPU."""

    def on_log(self, event: Event) -> Row:
        """Every ``--train.log`` images; returns entries of the row of metrics."""
        return {}

    def on_samples(self, event: Event) -> Row:
        """Every ``--train.samples`` images, and for previews, whose entries are dropped; returns entries of the row."""
        return {}

    def on_metrics(self, event: Event, row: Row) -> None:
        """Every row of metrics.jsonl, complete: with ``loss`` as often as it is logged, ``held_out_loss`` with each picture."""

    def on_checkpoint(self, event: Event) -> Callable[[], None] | None:
        """Before every checkpoint. What it returns is called while training continues, before the checkpoint is written."""
        return None

    def on_end(self, event: Event) -> None:
        """After the last checkpoint of a run that is complete (``event.last``) or was stopped by SIGTERM."""


class SampleGrid(Callback):
    """Write a grid of ``count`` samples, one row per class; every process generates some of them."""

    def __init__(self, model: Pipeline, count: int, seed: int):
        self.model, self.count, self.seed = model, count, seed

    def on_samples(self, event: Event) -> Row:
        """See Callback."""
        assert isinstance(event.average, Network)
        picture = sample_grid(_around(event.average, self.model), self.count, self.seed, event.processes)
        if picture is not None:
            write_png(picture, event.picture)
        return {}


class ModelFile(Callback):
    """Write ``model.safetensors`` and ``model.json``: the pipeline with the averaged weights."""

    def __init__(self, model: Pipeline):
        self.model = model

    def on_checkpoint(self, event: Event) -> Callable[[], None] | None:
        """See Callback."""
        network = event.ema.copy_to(torch.device("cpu"))
        if not event.processes.is_main:
            return None
        assert isinstance(network, Network)
        model = _around(network, self.model)
        model.facts = {**model.facts, "images": event.images}
        return lambda: model.save(event.folder)


class AutoencoderFile(Callback):
    """Measure the latents' statistics over at most 20,000 training images and write the autoencoder with them."""

    def __init__(self, data: Images):
        self.data = data

    def on_checkpoint(self, event: Event) -> Callable[[], None] | None:
        """See Callback."""
        average = event.ema.copy_to(event.device)
        if not event.processes.is_main:
            return None
        assert isinstance(average, Autoencoder)
        statistics, generator = ChannelStatistics(average.latent_channels), torch.Generator().manual_seed(0)
        with torch.no_grad():
            for _, moments, mean in _encoded(average, self.data, STATISTICS_IMAGES, event.device):
                noise = torch.randn(mean.shape, generator=generator).to(event.device)
                statistics.add(average.raw_latent(moments, noise))
        average.set_statistics(*(value.float() for value in statistics.result()))
        return lambda: record.save(average, event.folder)


class Reconstructions(Callback):
    """Write held-out images above their reconstructions; adds their PSNR in decibels to the metrics."""

    def __init__(self, held_out: Images):
        self.held_out = held_out

    def on_samples(self, event: Event) -> Row:
        """See Callback. PSNR is that of the mean squared error over all images."""
        average = event.average
        if not event.processes.is_main:
            return {}
        assert isinstance(average, Autoencoder)
        squares, shown, means = 0.0, np.empty(0), []
        with torch.no_grad():
            for pixels, _, mean in _encoded(average, self.held_out, len(self.held_out), event.device):
                decoded = float_to_uint8(average.decode_raw(mean)).cpu().numpy()
                squares += float(np.square(decoded.astype(np.float64) - pixels).sum())
                means.append(mean.flatten(1).cpu())
                if not shown.size:
                    shown = np.concatenate([pixels[:10], decoded[:10]])
        if means[0].shape[1] == 2:  # two numbers an image: its place on a plane
            figure = plane_figure(average, torch.cat(means).numpy(), self.held_out.labels, self.held_out.names)
            files.write_file(event.picture.with_name("plane.png"), figure)
        write_png(grid(np.moveaxis(shown, 1, -1), len(shown) // 2, ("image", "decoded")), event.picture)
        error = squares / (len(self.held_out) * np.prod(self.held_out.shape))
        return {"psnr": float(10 * np.log10(255**2 / max(error, 1e-12)))}


def _around(network: Network, model: Pipeline) -> Pipeline:
    """The pipeline with another network."""
    return Pipeline(
        network, model.diffusion, model.autoencoder, model.names, model.defaults, model.facts, model.counts, model.text,
        model.prompts,
    )  # fmt: skip


def _encoded(
    autoencoder: Autoencoder, images: Images, limit: int, device: torch.device
) -> Iterator[tuple[np.ndarray, Tensor, Tensor]]:
    """The first ``limit`` images in batches: uint8 pixels (N, C, H, W), moments of the posterior, and its mean."""
    count = min(len(images), limit)
    for start in range(0, count, ENCODED_AT_A_TIME):
        indices = np.arange(start, min(start + ENCODED_AT_A_TIME, count))
        pixels = images.read(indices)
        moments = autoencoder.encode(uint8_to_float(pixels, device)).float()
        yield pixels, moments, moments.chunk(2, dim=1)[0]
