"""The two tasks: a diffusion network on latents, and an autoencoder on pixels."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from ditlab.data import Images
from ditlab.diffusion import Loss, Positions
from ditlab.encoders import Autoencoder, EncodedCaptions, LatentCache, uint8_to_float
from ditlab.errors import UserError
from ditlab.models import Condition, Network, cost
from ditlab.train.task import Batch, Task

EVALUATION_TIMES = 8  # of the held-out loss: the middles of eighths of [0, 1]


class DiffusionTask(Task):
    """Train a DiT or a U-Net to denoise the latents of an autoencoder, which is not trained.

    ``data`` is pixels, for the identity autoencoder, or a cache of moments. ``captions`` of the same images are the
    condition in place of labels. UserError if a label exceeds the classes.
    """

    def __init__(
        self, network: Network, loss: Loss, autoencoder: Autoencoder, data: Images | LatentCache,
        captions: EncodedCaptions | None = None,
    ):  # fmt: skip
        self.module, self.diffusion_loss, self.autoencoder, self.data = network, loss, autoencoder, data
        self.captions = captions
        self.count, self.fingerprint = len(data), data.fingerprint
        if captions is not None:
            self.fingerprint += f"-{captions.fingerprint}"
        self.labels = torch.from_numpy(np.asarray(data.labels, np.int64))
        self.classes = network.spec.classes
        self.latent = network.spec.latent.shape
        self.macs = 1e9 * cost(network.config, network.spec).gmacs
        highest = int(self.labels.max())
        if self.classes and highest >= self.classes:
            raise UserError(f"label {highest} in the data is out of range: the network has {self.classes} classes")

    def read(self, indices: np.ndarray, flips: np.ndarray, draws: Batch) -> Batch:
        """Moments and labels, or moments, encoded captions and their mask."""
        moments = torch.from_numpy(self.data.read(indices, flips))
        if self.captions is not None:
            text = self.captions.read(indices, draws["caption"])
            return {"moments": moments, "text": text.value, "mask": text.mask}
        labels = self.labels[indices] if self.classes else torch.full((len(indices),), -1)
        return {"moments": moments, "labels": labels}

    def draw(self, positions: Positions) -> Batch:
        """The draws of the loss, and the noise of the autoencoder's posterior."""
        draws = self.diffusion_loss.draw(positions, self.latent)
        if self.captions is not None:
            draws["caption"] = positions.uniform("caption")
        if not isinstance(self.data, Images):  # moments
            draws["posterior"] = positions.normal("posterior", self.latent)
        return draws

    def evaluation_draws(self, positions: Positions) -> Batch:
        """Every label kept, and eight times in turn, so that the loss of one network is always the same."""
        return at_fixed_times(self.diffusion_loss, self.draw(positions))

    def loss(self, module: nn.Module, batch: Batch, draws: Batch) -> Tensor:
        """Sample the latents from their moments and denoise them."""
        moments = batch["moments"]
        moments = uint8_to_float(moments) if moments.dtype == torch.uint8 else moments.float()
        x0 = self.autoencoder.latent(moments, draws.get("posterior", moments))
        if self.captions is None:
            condition = Condition.of_labels(batch["labels"])
        else:
            condition = Condition.of_text(batch["text"], batch["mask"])
        return self.diffusion_loss(module, x0, condition, draws)

    def parts(self, module: nn.Module) -> list[nn.Module]:
        """The blocks: all blocks of a DiT, and equal blocks of a U-Net, share one compiled graph."""
        assert isinstance(module, Network)
        return list(module.block_list())

    def activation_checkpointing(self, on: bool = True) -> None:
        """Keep only the inputs of each block."""
        self.module.activation_checkpointing = on  # type: ignore[assignment]

    def to(self, device: torch.device) -> None:
        """Move network, loss tables and autoencoder."""
        super().to(device)
        self.diffusion_loss.to(device)
        self.autoencoder.to(device)


def at_fixed_times(loss: Loss, draws: Batch) -> Batch:
    """Draws of a loss with ``EVALUATION_TIMES`` times in turn and no condition dropped."""
    t = (torch.arange(len(draws["t"])) % EVALUATION_TIMES + 0.5).double() / EVALUATION_TIMES
    steps = loss.schedule.steps
    if steps:
        t = (t * (steps - 1)).round() / (steps - 1)
    return {**draws, "t": t.to(draws["t"].dtype), "drop": torch.zeros_like(draws["drop"])}


class AutoencoderTask(Task):
    """Train a KL autoencoder to reconstruct images (Kingma and Welling 2013; Rombach et al. 2022, no discriminator).

    The loss of an image is its mean squared error plus ``kl_weight`` times the KL divergence from a standard normal,
    summed over the latent and divided by the number of pixel values.
    """

    def __init__(self, autoencoder: Autoencoder, data: Images, kl_weight: float):
        self.module, self.data, self.kl_weight = autoencoder, data, kl_weight
        self.count, self.fingerprint = len(data), data.fingerprint
        self.latent = autoencoder.latent_shape(data.shape[1:])

    def read(self, indices: np.ndarray, flips: np.ndarray, draws: Batch) -> Batch:
        """Pixels."""
        return {"pixels": torch.from_numpy(self.data.read(indices, flips))}

    def draw(self, positions: Positions) -> Batch:
        """The noise of the posterior."""
        return {"posterior": positions.normal("posterior", self.latent)}

    def loss(self, module: nn.Module, batch: Batch, draws: Batch) -> Tensor:
        """Squared error and divergence."""
        assert isinstance(module, Autoencoder)
        pixels = uint8_to_float(batch["pixels"])
        moments = module.encode(pixels).float()
        mean, log_variance = moments.chunk(2, dim=1)
        log_variance = log_variance.clamp(-30, 20)
        divergence = 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).flatten(1).sum(dim=1)
        decoded = module.decode_raw(module.raw_latent(moments, draws["posterior"])).float()
        squared = (decoded - pixels).square().flatten(1).mean(dim=1)
        return squared + self.kl_weight * divergence / pixels[0].numel()

    def parts(self, module: nn.Module) -> list[nn.Module]:
        """Encoder and decoder."""
        assert isinstance(module, Autoencoder)
        return module.trained_parts()
