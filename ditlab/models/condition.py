"""What a network is conditioned on, beside the image and the time."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

NULL = -1  # "no class" inside a Condition; networks show it as the last row of their label table, index num_classes


@dataclass(frozen=True)
class Condition:
    """Class labels of a batch.

    Attributes:
        labels: int64 (N,), 0 .. num_classes - 1, or ``NULL`` where no class is told.
    """

    labels: Tensor

    def null(self) -> Condition:
        """The same batch with nothing told: what guidance pushes away from."""
        return Condition(torch.full_like(self.labels, NULL))

    def drop(self, mask: Tensor) -> Condition:
        """Hide the condition where ``mask`` (N,) is true (Ho and Salimans 2022)."""
        return Condition(torch.where(mask, NULL, self.labels))

    def join(self, other: Condition) -> Condition:
        """This batch followed by ``other``, for one batched pass over both."""
        return Condition(torch.cat([self.labels, other.labels]))
