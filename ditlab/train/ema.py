"""The exponential moving average of the weights."""

from __future__ import annotations

import copy

import torch
from torch import nn
from torch.distributed.tensor import DTensor
from torch.optim.swa_utils import get_ema_multi_avg_fn

from ditlab.train.parallel import local


class EMA:
    """A copy of a module whose parameters follow the trained ones: a <- decay a + (1 - decay) p, in float32.

    With ``warmup`` the decay is (1 + step) / (10 + step) while that is less, so that the average of a short run is not
    dominated by its initial weights. Without it the decay is constant, as in the paper. torch's AveragedModel is not used:
    it reads its count of updates on the host, which waits for the GPU in each step, and cannot be gathered from shards.
    """

    def __init__(self, module: nn.Module, decay: float, warmup: bool = True):
        self.decay, self.warmup, self.trained = decay, warmup, module
        self.module = copy.deepcopy(module).eval().requires_grad_(False)
        self._empty = copy.deepcopy(self.module).to("meta")  # a sharded module cannot be copied

    def decay_at(self, step: int) -> float:
        """The decay of optimiser step ``step``, 0 the first."""
        return min(self.decay, (1 + step) / (10 + step)) if self.warmup else self.decay

    def update(self, step: int) -> None:
        """Follow the weights after optimiser step ``step``."""
        average, trained = ([local(p.detach()) for p in module.parameters()] for module in (self.module, self.trained))
        get_ema_multi_avg_fn(self.decay_at(step))(average, trained, step)

    def whole(self) -> nn.Module:
        """The averaged module with all of its weights in this process; if it is sharded, every process must call it."""
        if not any(isinstance(parameter, DTensor) for parameter in self.module.parameters()):
            return self.module
        return self.copy_to(next(self.module.buffers()).device)

    @torch.no_grad()
    def copy_to(self, device: torch.device) -> nn.Module:
        """A copy on a device with all of the weights; if the average is sharded, every process must call it."""
        whole = copy.deepcopy(self._empty).to_empty(device=device)
        mine, others = ((*module.parameters(), *module.buffers()) for module in (whole, self.module))
        for tensor, other in zip(mine, others, strict=True):
            tensor.copy_(other.full_tensor() if isinstance(other, DTensor) else other)
        return whole
