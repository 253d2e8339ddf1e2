"""What the loop trains: a diffusion network on latents, or an autoencoder on pixels."""

from __future__ import annotations

from abc import ABC, abstractmethod
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from ditlab.data import Images
from ditlab.diffusion import Loss
from ditlab.encoders import (
    Autoencoder,
    ChannelStatistics,
    DiffusersAutoencoder,
    LatentCache,
    float_to_uint8,
    record,
    uint8_to_float,
)
from ditlab.encoders.plane import plane_figure
from ditlab.errors import UserError
from ditlab.models import Condition, Network, cost
from ditlab.pipelines import Pipeline, gather, generate, grid, write_png
from ditlab.runtime import files
from ditlab.runtime.distributed import Processes

Batch = dict[str, Tensor]


class Task(ABC):
    """A module, the data it learns from, and what it should make small.

    Attributes:
        module: what is trained.
        count: images in the training set.
        fingerprint: of the training set.
        macs: multiply-accumulates of a forward pass of one image; 0 where nobody counted.
    """

    module: nn.Module
    count: int
    fingerprint: str
    macs: float = 0.0

    @abstractmethod
    def read(self, indices: np.ndarray, flips: np.ndarray) -> Batch:
        """The images ``indices`` (N,) of the training set, mirrored where ``flips`` (N,), as tensors on the CPU."""

    @abstractmethod
    def draw(self, generator: torch.Generator, count: int) -> Batch:
        """Everything chance decides for a global batch, on the CPU; first axis ``count``."""

    @abstractmethod
    def losses(self, batch: Batch, draws: Batch) -> Tensor:
        """One loss an image, (N,)."""

    @abstractmethod
    def save(self, average: nn.Module, folder: Path, images: int) -> None:
        """Write the model file made of the averaged module into the run folder."""

    @abstractmethod
    def picture(self, average: nn.Module, path: Path, processes: Processes) -> dict[str, float]:
        """Draw what the averaged module can do, with the help of all processes; the first one writes.

        Gives numbers measured on the way, for metrics.jsonl.
        """

    def to(self, device: torch.device) -> None:
        """Move everything that computes to a device."""
        self.module.to(device)

    def parts(self, module: nn.Module) -> list[nn.Module]:
        """What of a module to compile, to shard, and to compute again going back, each on its own."""
        return list(module.children())

    def recompute(self, on: bool = True) -> None:
        """Keep less for the backward pass, or all again, in place.

        Raises:
            UserError: there is no way to.
        """
        raise UserError("--train.activation-checkpointing is for diffusion networks only")


class DiffusionTask(Task):
    """Train a DiT or a U-Net to denoise latents.

    Args:
        network: either.
        loss: with its schedule.
        autoencoder: gives the latents; it is not trained.
        data: pixels, for the identity autoencoder, or a cache of moments.
        model: what ``save`` writes, around the trained network.
        sample_count: images on a sample picture.
        seed: of the sample pictures.

    Raises:
        UserError: a label of the data that the network does not know.
    """

    def __init__(
        self,
        network: Network,
        loss: Loss,
        autoencoder: Autoencoder,
        data: Images | LatentCache,
        model: Pipeline,
        sample_count: int,
        seed: int,
    ):
        self.module, self.loss, self.autoencoder, self.data = network, loss, autoencoder, data
        self.model, self.sample_count, self.seed = model, sample_count, seed
        self.count, self.fingerprint = len(data), data.fingerprint
        self.labels = torch.from_numpy(np.asarray(data.labels, np.int64))
        self.latent = (network.input.channels, network.input.height, network.input.width)
        self.macs = 1e9 * cost(network.config, network.input).gmacs
        if network.input.classes and int(self.labels.max()) >= network.input.classes:
            raise UserError(
                f"label {int(self.labels.max())} in the data is out of range: the network has {network.input.classes} classes"
            )

    def read(self, indices: np.ndarray, flips: np.ndarray) -> Batch:
        """Moments and labels."""
        moments = torch.from_numpy(self.data.read(indices, flips))
        labels = self.labels[indices] if self.module.input.classes else torch.full((len(indices),), -1)  # type: ignore[union-attr]
        return {"moments": moments, "labels": labels}

    def draw(self, generator: torch.Generator, count: int) -> Batch:
        """The loss's draws, and the noise of the autoencoder's posterior."""
        draws = self.loss.draw(generator, count, self.latent)
        if isinstance(self.data, LatentCache):
            draws["posterior"] = torch.randn(count, *self.latent, generator=generator)
        return draws

    def losses(self, batch: Batch, draws: Batch) -> Tensor:
        """Draw latents and denoise them."""
        moments = batch["moments"]
        moments = uint8_to_float(moments) if moments.dtype == torch.uint8 else moments.float()
        x0 = self.autoencoder.latent(moments, draws.get("posterior", moments))
        return self.loss(self.module, x0, Condition(batch["labels"]), draws)

    def _averaged(self, average: nn.Module) -> Pipeline:
        assert isinstance(average, Network)
        model = self.model
        return Pipeline(
            average, model.diffusion, self.autoencoder, model.pixels, model.names, model.defaults, model.facts
        )

    def save(self, average: nn.Module, folder: Path, images: int) -> None:
        """Write ``model.safetensors`` and ``model.json``."""
        model = self._averaged(average)
        model.facts = {**model.facts, "images": images}
        model.save(folder)

    def picture(self, average: nn.Module, path: Path, processes: Processes) -> dict[str, float]:
        """Write a grid, a class a row where there are classes; every process makes some of its images."""
        model = self._averaged(average)
        columns = max(1, round(self.sample_count**0.5))
        rows = max(1, self.sample_count // columns)
        classes = model.classes
        labels = [row % classes for row in range(rows) for _ in range(columns)] if classes else None
        made = generate(model, labels, self.seed, rows * columns, model.defaults, processes=processes)
        images = gather(made, processes)
        if processes.is_main:
            names = [model.names[row % classes] for row in range(rows)] if classes and model.names else ()
            write_png(grid(images, columns, names), path)
        return {}

    def parts(self, module: nn.Module) -> list[nn.Module]:
        """The blocks: one compiled graph serves all of a DiT's, and alike ones of a U-Net."""
        assert isinstance(module, Network)
        return list(module.blocks)

    def recompute(self, on: bool = True) -> None:
        """Keep only what enters each block."""
        self.module.recompute = on  # type: ignore[assignment]

    def to(self, device: torch.device) -> None:
        """Move network, loss tables and autoencoder."""
        super().to(device)
        self.loss.to(device)
        self.autoencoder.to(device)


class AutoencoderTask(Task):
    """Train a KL autoencoder to give images back (Kingma and Welling 2013; Rombach et al. 2022, without a discriminator).

    The loss of an image is its mean squared error plus ``kl_weight`` times the divergence from a standard normal, summed
    over the latent and divided by the number of pixels.

    Args:
        autoencoder: what is trained.
        data: pixels.
        held_out: images whose reconstruction is drawn and measured.
        kl_weight: of the divergence.
    """

    def __init__(self, autoencoder: DiffusersAutoencoder, data: Images, held_out: Images, kl_weight: float):
        self.module, self.data, self.held_out, self.kl_weight = autoencoder, data, held_out, kl_weight
        self.count, self.fingerprint = len(data), data.fingerprint
        self.latent = autoencoder.latent_shape(data.shape[1:])

    def read(self, indices: np.ndarray, flips: np.ndarray) -> Batch:
        """Pixels."""
        return {"pixels": torch.from_numpy(self.data.read(indices, flips))}

    def draw(self, generator: torch.Generator, count: int) -> Batch:
        """Noise of the posterior."""
        return {"posterior": torch.randn(count, *self.latent, generator=generator)}

    def losses(self, batch: Batch, draws: Batch) -> Tensor:
        """Reconstruction and divergence."""
        pixels, autoencoder = uint8_to_float(batch["pixels"]), self.module
        assert isinstance(autoencoder, DiffusersAutoencoder)
        moments = autoencoder.encode(pixels).float()
        mean, log_variance = moments.chunk(2, dim=1)
        log_variance = log_variance.clamp(-30, 20)
        divergence = 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).flatten(1).sum(dim=1)
        decoded = autoencoder.decode_raw(autoencoder.raw_latent(moments, draws["posterior"])).float()
        squared = (decoded - pixels).square().flatten(1).mean(dim=1)
        return squared + self.kl_weight * divergence / pixels[0].numel()

    def parts(self, module: nn.Module) -> list[nn.Module]:
        """Encoder and decoder."""
        assert isinstance(module, DiffusersAutoencoder)
        return [module.vae.encoder, module.vae.decoder]

    def save(self, average: nn.Module, folder: Path, images: int) -> None:
        """Measure the latents' statistics over at most 20,000 training images, and write the autoencoder with them."""
        assert isinstance(average, DiffusersAutoencoder)
        statistics = ChannelStatistics(average.latent_channels)
        generator = torch.Generator().manual_seed(0)
        device = average.mean.device
        with torch.no_grad():
            for start in range(0, min(self.count, 20_000), 256):
                indices = np.arange(start, min(start + 256, self.count))
                moments = average.encode(
                    uint8_to_float(self.data.read(indices, np.zeros(len(indices), bool)), device)
                ).float()
                noise = torch.randn(len(indices), *self.latent, generator=generator).to(device)
                statistics.add(average.raw_latent(moments, noise))
        average.set_statistics(*(value.float() for value in statistics.result()))
        record.save(average, folder)

    def picture(self, average: nn.Module, path: Path, processes: Processes) -> dict[str, float]:
        """Write held-out images above their reconstructions; gives their PSNR in decibels, from the mean squared error.

        The first process does it alone.
        """
        if not processes.is_main:
            return {}
        assert isinstance(average, DiffusersAutoencoder)
        squares, drawn = 0.0, np.empty(0)
        device = average.mean.device
        with torch.no_grad():
            for start in range(0, len(self.held_out), 256):
                indices = np.arange(start, min(start + 256, len(self.held_out)))
                pixels = self.held_out.read(indices, np.zeros(len(indices), bool))
                moments = average.encode(uint8_to_float(pixels, device)).float()
                raw = moments.chunk(2, dim=1)[0]  # the posterior's mean, without its noise
                decoded = float_to_uint8(average.decode_raw(raw)).cpu().numpy()
                squares += float(np.square(decoded.astype(np.float64) - pixels).sum())
                if start == 0:
                    drawn = np.concatenate([pixels[:10], decoded[:10]])
        if self.latent == (2, 1, 1):
            files.write_file(path.with_name("plane.png"), self._plane(average))
        write_png(grid(drawn.transpose(0, 2, 3, 1), len(drawn) // 2, ("image", "decoded")), path)
        error = squares / (len(self.held_out) * np.prod(self.held_out.shape))
        return {"psnr": float(10 * np.log10(255**2 / max(error, 1e-12)))}

    def _plane(self, average: DiffusersAutoencoder) -> bytes:
        """The held-out images' two numbers each, and images decoded from a grid over them."""
        device = average.mean.device
        with torch.no_grad():
            moments = average.encode(uint8_to_float(self.held_out.pixels, device)).float()
        coordinates = moments.chunk(2, dim=1)[0].flatten(1).cpu().numpy()
        return plane_figure(average, coordinates, self.held_out.labels, self.held_out.names)
