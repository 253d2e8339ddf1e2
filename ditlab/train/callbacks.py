"""Callbacks of the loop: sample pictures, reconstructions and model files."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from torch import nn

from ditlab.data import Images
from ditlab.encoders import ChannelStatistics, DiffusersAutoencoder, float_to_uint8, record, uint8_to_float
from ditlab.encoders.plane import plane_of_images
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
    """The state of training that callbacks get.

    Attributes:
        images: trained on so far.
        last: whether training is complete.
        folder: of the run.
        task: with the trained module.
        ema: the moving average of its weights; ``ema.module`` may be sharded.
        config: of training.
        processes: of the run.
        device: of this process.
    """

    images: int
    last: bool
    folder: Path
    task: Task
    ema: EMA
    config: TrainConfig
    processes: Processes
    device: torch.device

    @cached_property
    def average(self) -> nn.Module:
        """The averaged module with all of its weights in this process; collective, so every process must read it."""
        return self.ema.whole()

    @property
    def picture(self) -> Path:
        """Where a picture of this moment goes."""
        return self.folder / "samples" / f"{self.images:012d}.png"


class Callback:
    """Hooks of the loop. Every process calls every hook; the time they take does not count as training time."""

    def on_log(self, event: Event) -> Row:
        """Every ``--train.log`` images; returns entries of the row of metrics."""
        return {}

    def on_samples(self, event: Event) -> Row:
        """Every ``--train.samples`` images; returns entries of the row of metrics."""
        return {}

    def on_checkpoint(self, event: Event) -> Callable[[], None] | None:
        """Before every checkpoint. What it returns is called while training continues, before the checkpoint is written."""
        return None


class SampleGrid(Callback):
    """Write a grid of samples, one row per class; every process generates some of them.

    Args:
        model: the pipeline around the trained network.
        count: of samples.
        seed: of the samples.
    """

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
    """Write ``model.safetensors`` and ``model.json`` with the averaged weights.

    Args:
        model: the pipeline around the trained network.
    """

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
    """Measure the latents' statistics over at most 20,000 training images and write the autoencoder with them.

    Args:
        data: the training images.
    """

    def __init__(self, data: Images):
        self.data = data

    def on_checkpoint(self, event: Event) -> Callable[[], None] | None:
        """See Callback."""
        average = event.average
        if not event.processes.is_main:
            return None
        assert isinstance(average, DiffusersAutoencoder)
        statistics, generator = ChannelStatistics(average.latent_channels), torch.Generator().manual_seed(0)
        with torch.no_grad():
            for pixels in _batches(self.data, STATISTICS_IMAGES):
                moments = average.encode(uint8_to_float(pixels, event.device)).float()
                mean = moments.chunk(2, dim=1)[0]
                noise = torch.randn(mean.shape, generator=generator).to(event.device)
                statistics.add(average.raw_latent(moments, noise))
        average.set_statistics(*(value.float() for value in statistics.result()))
        record.save(average, event.folder)
        return None


class Reconstructions(Callback):
    """Write held-out images above their reconstructions; adds their PSNR in decibels to the metrics.

    Args:
        held_out: images.
    """

    def __init__(self, held_out: Images):
        self.held_out = held_out

    def on_samples(self, event: Event) -> Row:
        """See Callback. PSNR is that of the mean squared error over all images."""
        average = event.average
        if not event.processes.is_main:
            return {}
        assert isinstance(average, DiffusersAutoencoder)
        squares, shown, means = 0.0, np.empty(0), []
        with torch.no_grad():
            for pixels in _batches(self.held_out, len(self.held_out)):
                moments = average.encode(uint8_to_float(pixels, event.device)).float()
                mean = moments.chunk(2, dim=1)[0]  # of the posterior, without its noise
                decoded = float_to_uint8(average.decode_raw(mean)).cpu().numpy()
                squares += float(np.square(decoded.astype(np.float64) - pixels).sum())
                means.append(mean.flatten(1).cpu())
                if not shown.size:
                    shown = np.concatenate([pixels[:10], decoded[:10]])
        if means[0].shape[1] == 2:  # two numbers an image: its place on a plane
            figure = plane_of_images(average, torch.cat(means).numpy(), self.held_out)
            files.write_file(event.picture.with_name("plane.png"), figure)
        write_png(grid(shown.transpose(0, 2, 3, 1), len(shown) // 2, ("image", "decoded")), event.picture)
        error = squares / (len(self.held_out) * np.prod(self.held_out.shape))
        return {"psnr": float(10 * np.log10(255**2 / max(error, 1e-12)))}


def _around(network: Network, model: Pipeline) -> Pipeline:
    """The pipeline with another network."""
    return Pipeline(network, model.diffusion, model.autoencoder, model.names, model.defaults, model.facts)


def _batches(images: Images, limit: int) -> Iterator[np.ndarray]:
    """The first ``limit`` images in batches of uint8 (N, C, H, W)."""
    count = min(len(images), limit)
    for start in range(0, count, ENCODED_AT_A_TIME):
        indices = np.arange(start, min(start + ENCODED_AT_A_TIME, count))
        yield images.read(indices, np.zeros(len(indices), bool))
