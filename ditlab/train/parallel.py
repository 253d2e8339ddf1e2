"""One network on several processes: a copy in each (DDP), or a shard in each (FSDP2)."""

from __future__ import annotations

import warnings
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from ditlab.runtime.distributed import Processes
from ditlab.train.config import TrainConfig
from ditlab.train.task import Batch, Task

BUCKET_MB = 100  # of gradients that DDP exchanges at a time: 25 of XL/2's 675M parameters, 27 buckets


class TaskLoss(nn.Module):
    """A task's loss as a module, which is what DDP wraps: called with a batch and its draws, returns (N,)."""

    def __init__(self, task: Task):
        super().__init__()
        self.module = task.module
        self._loss = task.loss

    def forward(self, batch: Batch, draws: Batch) -> Tensor:
        """The loss of each image."""
        return self._loss(self.module, batch, draws)


class Parallel:
    """Losses of this process's share of a batch, and gradients averaged over all; FSDP needs the module sharded before."""

    def __init__(self, task: Task, config: TrainConfig, processes: Processes, device: torch.device):
        self.loss: nn.Module = TaskLoss(task)
        self.processes = processes
        if processes.size > 1 and config.parallel == "ddp":
            # Else Dynamo cuts every compiled block at the borders of buckets (pytorch/pytorch#108966); the blocks are small
            # enough for their gradients to overlap with the exchange anyway.
            torch._dynamo.config.optimize_ddp = False
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", FutureWarning)  # 2.13 renames broadcast_buffers, 2.9 lacks the new name
                self.loss = DistributedDataParallel(
                    self.loss, broadcast_buffers=False, gradient_as_bucket_view=True, bucket_cap_mb=BUCKET_MB
                )
        self.autocast = config.autocast(device)

    def backward(self, batch: Batch, draws: Batch, microbatch: int) -> Tensor:
        """Accumulate the gradient of the mean loss, ``microbatch`` images at a time; returns the losses (N,)."""
        count = len(next(iter(batch.values())))
        found = []
        for start in range(0, count, microbatch):
            part = slice(start, start + microbatch)
            with self._gradient_exchange(start + microbatch >= count):
                inputs = ({name: value[part] for name, value in tensors.items()} for tensors in (batch, draws))
                with self.autocast:
                    losses = self.loss(*inputs)
                (losses.sum() / count).backward()
            found.append(losses.detach())
        return torch.cat(found)

    def all_true(self, value: Tensor) -> Tensor:
        """Whether a bool () on the device is true in every process."""
        if self.processes.size == 1:
            return value
        smallest = value.float()
        dist.all_reduce(smallest, op=dist.ReduceOp.MIN)
        return smallest.bool()

    def _gradient_exchange(self, last: bool) -> AbstractContextManager:
        """DDP exchanges gradients in the last microbatch only; FSDP in each, or it would hold unsharded gradients."""
        return nullcontext() if last or not isinstance(self.loss, DistributedDataParallel) else self.loss.no_sync()


def shard(module: nn.Module, task: Task, config: TrainConfig, processes: Processes, device: torch.device) -> None:
    """Shard every parameter over the processes (FSDP2), part by part as the task lists them, in place.

    With ``shard_size`` below the number of processes, groups of that many hold the shards of one copy (hybrid sharding).
    """
    size = config.shard_size or processes.size
    if size == processes.size:
        mesh = init_device_mesh(device.type, (size,))
    else:
        mesh = init_device_mesh(device.type, (processes.size // size, size), mesh_dim_names=("replicate", "shard"))
    dtype = torch.bfloat16 if config.precision_on(device) == "bf16" else None
    # Inputs are not cast: a timestep in bfloat16 would be another timestep. Gradients are averaged in float32.
    policy = MixedPrecisionPolicy(param_dtype=dtype, reduce_dtype=torch.float32, cast_forward_inputs=False)
    for part in task.parts(module):
        fully_shard(part, mesh=mesh, mp_policy=policy, reshard_after_forward=config.reshard_after_forward)
    # The rest is small and gathered in float32: autocast casts its products, and an embedding is not rounded, as in DDP.
    fully_shard(module, mesh=mesh, mp_policy=replace(policy, param_dtype=None))


def local(tensor: Tensor) -> Tensor:
    """The part of a tensor that is in this process."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def gradient_norm(parameters: list[nn.Parameter]) -> Tensor:
    """The Euclidean norm of all gradients together, (), the same in every process."""
    norm = nn.utils.get_total_norm([parameter.grad for parameter in parameters if parameter.grad is not None])
    return norm.full_tensor() if isinstance(norm, DTensor) else norm
