"""The processes of one run: this one alone, or those that torchrun started together."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from ditlab.errors import UserError

T = TypeVar("T")


@dataclass(frozen=True)
class Processes:
    """This process among those of a run; by default the only one."""

    rank: int = 0
    size: int = 1  # number of processes (the world size)
    local: int = 0  # rank on this machine, which is the index of its GPU
    cpu_group: Any = None  # gloo group for CPU tensors and objects; its collectives may overlap a training step
    checkpoint_group: Any = None  # another gloo group, for the threads that write checkpoints

    @property
    def is_main(self) -> bool:
        """Whether this is rank 0, which writes files and log lines."""
        return self.rank == 0

    def barrier(self) -> None:
        """Wait until every process gets here."""
        if self.size > 1:
            dist.barrier(group=self.cpu_group)

    def broadcast_from_main(self, make: Callable[[], T]) -> T:
        """Call ``make`` in the main process only; every process returns its result, or raises its UserError."""
        if self.size == 1:
            return make()
        result: list[Any] = [None, None]
        if self.is_main:
            try:
                result = [make(), None]
            except UserError as error:
                result = [None, str(error)]
        dist.broadcast_object_list(result, src=0, group=self.cpu_group)
        if result[1] is not None:
            raise UserError(result[1])
        return result[0]

    def gather(self, value: T) -> list[T]:
        """The values of all processes, in rank order, in the main process; an empty list in the others."""
        if self.size == 1:
            return [value]
        values: list[Any] | None = [None] * self.size if self.is_main else None
        dist.gather_object(value, values, dst=0, group=self.cpu_group)
        return values or []

    def all_reduce_min(self, value: int) -> int:
        """The smallest value of all processes, in every process."""
        smallest = torch.tensor(value)
        if self.size > 1:
            dist.all_reduce(smallest, op=dist.ReduceOp.MIN, group=self.cpu_group)
        return int(smallest)

    def all_reduce_sum(self, value: torch.Tensor) -> torch.Tensor:
        """The sum of a tensor over all processes, in every process, on the CPU."""
        total = value.detach().cpu().clone()
        if self.size > 1:
            dist.all_reduce(total, group=self.cpu_group)
        return total


ALONE = Processes()


def join(timeout: float = 1800) -> Processes:
    """Initialise the process group of torchrun's processes, with a timeout in seconds; ``ALONE`` without torchrun."""
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1:
        return ALONE
    rank, local = int(os.environ["RANK"]), int(os.environ.get("LOCAL_RANK", "0"))
    limit = timedelta(seconds=timeout)
    if not dist.is_initialized():
        store, *_ = next(dist.rendezvous("env://", timeout=limit))
        if os.environ.get("GROUP_WORLD_SIZE", "1") == "1":
            # Restarted workers would read addresses that the previous ones left in the store (pytorch/pytorch#135712).
            # Only on one machine: each machine counts its own restarts.
            store = dist.PrefixStore(f"start {os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", store)
        settings: dict[str, Any] = {"store": store, "rank": rank, "world_size": size, "timeout": limit}
        if torch.cuda.is_available():
            torch.cuda.set_device(local)
            dist.init_process_group("cpu:gloo,cuda:nccl", device_id=torch.device("cuda", local), **settings)
        else:
            dist.init_process_group("gloo", **settings)
    groups = [dist.new_group(backend="gloo", timeout=limit) for _ in range(2)]
    return Processes(rank, size, local, *groups)


def leave() -> None:
    """Destroy the process group."""
    if dist.is_initialized():
        dist.destroy_process_group()
