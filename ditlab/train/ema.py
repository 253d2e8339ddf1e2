"""The exponential moving average of the weights."""

from __future__ import annotations

import copy

import torch
from torch import nn


class Average:
    """A copy of a module whose parameters follow the trained ones: a <- decay * a + (1 - decay) * p, in float32.

    The first steps follow faster, with decay (1 + step) / (10 + step), so that the average of a short run is not its
    random beginning.
    """

    def __init__(self, module: nn.Module, decay: float):
        self.decay = decay
        self.module = copy.deepcopy(module).eval().requires_grad_(False)
        self._average = [parameter.detach() for parameter in self.module.parameters()]
        self._trained = [parameter.detach() for parameter in module.parameters()]

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Follow the weights after optimiser step ``step``, 0 the first."""
        decay = min(self.decay, (1 + step) / (10 + step))
        torch._foreach_lerp_(self._average, self._trained, 1 - decay)
