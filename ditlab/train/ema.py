"""The exponential moving average of the weights."""

from __future__ import annotations

import copy

import torch
from torch import nn
from torch.distributed.tensor import DTensor

from ditlab.train.parallel import here


class EMA:
    """A copy of a module whose parameters follow the trained ones: a <- decay * a + (1 - decay) * p, in float32.

    The first steps follow faster, with decay (1 + step) / (10 + step), so that the average of a short run is not its
    random beginning.
    """

    def __init__(self, module: nn.Module, decay: float):
        self.decay, self.trained = decay, module
        self.module = copy.deepcopy(module).eval().requires_grad_(False)
        self._shape = copy.deepcopy(self.module).to("meta")  # a sharded module cannot be copied

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Follow the weights after optimiser step ``step``, 0 the first."""
        decay = min(self.decay, (1 + step) / (10 + step))
        average, trained = (
            [here(parameter.detach()) for parameter in module.parameters()] for module in (self.module, self.trained)
        )
        torch._foreach_lerp_(average, trained, 1 - decay)

    @torch.no_grad()
    def whole(self) -> nn.Module:
        """The averaged module with all of its weights in this process; where it is sharded, every process must ask."""
        parameters = dict(self.module.named_parameters())
        if not any(isinstance(parameter, DTensor) for parameter in parameters.values()):
            return self.module
        buffers = dict(self.module.named_buffers())
        module = copy.deepcopy(self._shape).to_empty(device=next(iter(buffers.values())).device)
        for name, value in module.named_parameters():
            sharded = parameters[name]
            assert isinstance(sharded, DTensor)
            value.copy_(sharded.full_tensor())
        for name, value in module.named_buffers():
            value.copy_(buffers[name])
        return module
