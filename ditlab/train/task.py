"""What the loop trains: a module, its data, the random draws and the loss."""

from __future__ import annotations

from abc import ABC, abstractmethod

import numpy as np
import torch
from torch import Tensor, nn

from ditlab.diffusion import Positions
from ditlab.errors import UserError

Batch = dict[str, Tensor]


class Task(ABC):
    """Reads batches, makes the random draws and computes losses. Everything else is the loop's or a callback's."""

    module: nn.Module
    count: int  # images in the training set
    fingerprint: str  # of the training set
    macs: float = 0.0  # multiply-accumulates of a forward pass of one image; 0 if unknown

    @abstractmethod
    def read(self, indices: np.ndarray, flips: np.ndarray, draws: Batch) -> Batch:
        """The images ``indices`` (N,) of the training set, mirrored where ``flips`` (N,) is set, as CPU tensors.

        ``draws`` (N rows), made by ``draw``, decide what else is random, as which of several captions an image has.
        """

    @abstractmethod
    def draw(self, positions: Positions) -> Batch:
        """All random numbers of the images at ``positions``, as CPU tensors."""

    @abstractmethod
    def loss(self, module: nn.Module, batch: Batch, draws: Batch) -> Tensor:
        """The loss of each image, (N,), computed with ``module``: the trained one, or its moving average."""

    def evaluation_draws(self, positions: Positions) -> Batch:
        """Draws for the held-out loss; by default those of training."""
        return self.draw(positions)

    def to(self, device: torch.device) -> None:
        """Move the module, and whatever else the loss computes with, to a device."""
        self.module.to(device)

    def parts(self, module: nn.Module) -> list[nn.Module]:
        """The submodules that are compiled, sharded, checkpointed and monitored one by one."""
        return list(module.children())

    def activation_checkpointing(self, on: bool = True) -> None:
        """Keep only the inputs of each part for the backward pass, or everything; UserError if that is not supported."""
        raise UserError("--train.activation-checkpointing is for diffusion networks only")
