"""The processes of one run: this one alone, or those torchrun started together."""

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
    """One process among those of a run; by default the only one.

    Attributes:
        rank: its number, from 0.
        size: how many there are.
        local: its number on this machine, which is the number of its GPU.
        host: group for what is said between CPUs while a step runs.
        writers: another one, for what is said by threads that write checkpoints.
    """

    rank: int = 0
    size: int = 1
    local: int = 0
    host: Any = None
    writers: Any = None

    @property
    def first(self) -> bool:
        """Whether this one writes and speaks for all."""
        return self.rank == 0

    def wait(self) -> None:
        """Until every process is here."""
        if self.size > 1:
            dist.barrier(group=self.host)

    def agree(self, make: Callable[[], T]) -> T:
        """What ``make`` gives in the first process, in every process.

        Raises:
            UserError: in every process, where ``make`` raised it in the first.
        """
        if self.size == 1:
            return make()
        said: list[Any] = [None, None]
        if self.first:
            try:
                said = [make(), None]
            except UserError as error:
                said = [None, str(error)]
        dist.broadcast_object_list(said, src=0, group=self.host)
        if said[1] is not None:
            raise UserError(said[1])
        return said[0]

    def gather(self, value: T) -> list[T]:
        """Every process's value, in rank order, in the first process; nothing in the others."""
        if self.size == 1:
            return [value]
        values: list[Any] | None = [None] * self.size if self.first else None
        dist.gather_object(value, values, dst=0, group=self.host)
        return values or []

    def least(self, value: int) -> int:
        """The smallest of every process's value, in every process."""
        smallest = torch.tensor(value)
        if self.size > 1:
            dist.all_reduce(smallest, op=dist.ReduceOp.MIN, group=self.host)
        return int(smallest)

    def sum(self, value: torch.Tensor) -> torch.Tensor:
        """The sum of a tensor over all processes, in every process, on the CPU."""
        total = value.detach().cpu().clone()
        if self.size > 1:
            dist.all_reduce(total, group=self.host)
        return total


ALONE = Processes()


def join(timeout: float = 1800) -> Processes:
    """Meet the processes torchrun started; alone where it started none.

    Args:
        timeout: seconds a process waits for another one before it ends with an error.
    """
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1:
        return ALONE
    rank, local = int(os.environ["RANK"]), int(os.environ.get("LOCAL_RANK", "0"))
    patience = timedelta(seconds=timeout)
    if not dist.is_initialized():
        store, *_ = next(dist.rendezvous("env://", timeout=patience))
        if os.environ.get("GROUP_WORLD_SIZE", "1") == "1":
            # Workers that torchrun starts again would meet at addresses the ones before left there (pytorch/pytorch#135712).
            # Of several machines each counts its own restarts.
            store = dist.PrefixStore(f"start {os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", store)
        meeting: dict[str, Any] = {"store": store, "rank": rank, "world_size": size, "timeout": patience}
        if torch.cuda.is_available():
            torch.cuda.set_device(local)
            dist.init_process_group("cpu:gloo,cuda:nccl", device_id=torch.device("cuda", local), **meeting)
        else:
            dist.init_process_group("gloo", **meeting)
    groups = [dist.new_group(backend="gloo", timeout=patience) for _ in range(2)]
    return Processes(rank, size, local, *groups)


def leave() -> None:
    """Say goodbye to the others, when all work is done."""
    if dist.is_initialized():
        dist.destroy_process_group()
