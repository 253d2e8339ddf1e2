"""One network on many processes: a copy each (DDP), or a shard each (FSDP2)."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from ditlab.runtime.distributed import Processes
from ditlab.train.config import TrainConfig
from ditlab.train.tasks import Batch, Task


class Losses(nn.Module):
    """An objective's losses as a module, which is what DDP wraps: called with a batch and its draws, gives (N,)."""

    def __init__(self, objective: Task):
        super().__init__()
        self.module = objective.module
        self._losses = objective.losses

    def forward(self, batch: Batch, draws: Batch) -> Tensor:
        """One loss an image."""
        return self._losses(batch, draws)


class Parallel:
    """The losses of this process's share of a batch, with gradients that end up averaged over all processes.

    Args:
        objective: gives the losses; its module is sharded in place where the configuration asks for FSDP.
        config: how.
        processes: over which.
        device: of this process.
    """

    def __init__(self, objective: Task, config: TrainConfig, processes: Processes, device: torch.device):
        self.losses: nn.Module = Losses(objective)
        self.processes = processes
        if processes.size > 1 and config.parallel == "ddp":
            with warnings.catch_warnings():
                # torch 2.13 renames the argument, 2.9 has this name only
                warnings.simplefilter("ignore", FutureWarning)
                self.losses = DistributedDataParallel(
                    self.losses, broadcast_buffers=False, gradient_as_bucket_view=True
                )
        self.autocast = config.autocast(device)

    def backward(self, batch: Batch, draws: Batch, part: int) -> Tensor:
        """Add the gradient of the mean loss, in parts of ``part`` images at a time; gives the losses (N,)."""
        count = len(next(iter(batch.values())))
        found = []
        for start in range(0, count, part):
            here = slice(start, start + part)
            with self._meeting(start + part >= count):
                with self.autocast:
                    losses = self.losses(_slice(batch, here), _slice(draws, here))
                (losses.sum() / count).backward()
            found.append(losses.detach())
        return found[0] if len(found) == 1 else torch.cat(found)

    def everywhere(self, true: Tensor) -> Tensor:
        """Whether something, a bool () on the device, is true in every process."""
        if self.processes.size == 1:
            return true
        least = true.float()
        dist.all_reduce(least, op=dist.ReduceOp.MIN)
        return least.bool()

    @contextmanager
    def _meeting(self, last: bool) -> Iterator[None]:
        """Copies exchange gradients in the last part only; shards in each, or they would hold whole gradients meanwhile."""
        if isinstance(self.losses, DistributedDataParallel) and not last:
            with self.losses.no_sync():
                yield
        else:
            yield


def shard(module: nn.Module, objective: Task, config: TrainConfig, processes: Processes, device: torch.device):
    """Leave each process a shard of every parameter (FSDP2), block by block as the objective names them, in place."""
    mesh = init_device_mesh(device.type, (processes.size,))
    bf16 = config.precision_on(device) == "bf16"
    # Inputs are not cast: a timestep in bfloat16 would be another timestep. Gradients are averaged in float32.
    policy = MixedPrecisionPolicy(
        param_dtype=torch.bfloat16 if bf16 else None, reduce_dtype=torch.float32, cast_forward_inputs=False
    )
    for part in objective.parts(module):
        fully_shard(part, mesh=mesh, mp_policy=policy)
    fully_shard(module, mesh=mesh, mp_policy=policy)


def here(tensor: Tensor) -> Tensor:
    """What of a tensor lies in this process."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def gradient_norm(parameters: list[nn.Parameter]) -> Tensor:
    """The Euclidean norm of all gradients together, (), the same in every process."""
    norm = nn.utils.get_total_norm([parameter.grad for parameter in parameters if parameter.grad is not None])
    return norm.full_tensor() if isinstance(norm, DTensor) else norm


def _slice(tensors: Batch, here: slice) -> Batch:
    return {name: value[here] for name, value in tensors.items()}
