"""How long, how fast and how carefully to train."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Literal

import torch

from ditlab.errors import UserError
from ditlab.runtime.device import cpu_has_bf16, matmul_precision


@dataclass(frozen=True)
class TrainConfig:
    """The training loop; everything is counted in images. By default the paper's optimiser."""

    images: int = 102_400_000
    """Images to train on in all (the paper's 400K steps of 256); 0 chooses for the machine."""
    batch: int = 256
    """Images a step, over all processes; 0 chooses for the machine."""
    lr: float = 1e-4
    """Learning rate of AdamW."""
    beta2: float = 0.999
    """Second moment decay of AdamW."""
    weight_decay: float = 0.0
    """Weight decay of AdamW."""
    warmup: float = 0.0
    """Share of the run, at its start, over which the learning rate rises from zero."""
    cooldown: float = 0.0
    """Share of the run, at its end, over which the learning rate falls to zero."""
    ema: float = 0.9999
    """Decay per step of the exponential moving average of the weights, which samples are made with."""
    ema_warmup: bool = True
    """Average with decay (1 + step) / (10 + step) while that is less than --train.ema; False is the paper's constant."""
    precision: Literal["auto", "fp32", "tf32", "bf16"] = "auto"
    """bf16 computes matrix products in bfloat16 over float32 weights, tf32 in TensorFloat-32; auto is bf16 on GPUs. On a CPU
    without instructions for bfloat16, bf16 is fp32."""
    max_grad_norm: float = 0.0
    """Clip the gradient to this norm; 0 does not clip."""
    parallel: Literal["ddp", "fsdp"] = "ddp"
    """On many processes: a copy of everything in each, or a shard of every parameter."""
    shard_size: int = 0
    """With fsdp, processes that hold one copy together; 0 is all of them, less is hybrid sharding."""
    reshard_after_forward: bool = True
    """With fsdp, free each block's gathered weights until the backward pass; False takes memory and saves an exchange."""
    microbatch: int = 0
    """Images a process computes at a time, with gradients accumulated to a batch; 0 finds what fits in memory."""
    activation_checkpointing: bool = False
    """Keep only the input of each block and recompute the rest in the backward pass: less memory, a third more work."""
    timeout: float = 1800.0
    """Seconds without a finished step after which a process that hangs is ended."""
    compile: Literal["auto", "on", "off"] = "auto"
    """Compile the network's blocks with torch.compile; auto does so on GPUs."""
    threads: int = 0
    """CPU threads of a process; 0 times a step with one and with all and takes the faster, unless OMP_NUM_THREADS is set."""
    log: int = 25_600
    """Images between rows of metrics.jsonl."""
    checkpoint: int = 2_560_000
    """Images between checkpoints."""
    samples: int = 2_560_000
    """Images between sample pictures."""
    keep_checkpoints: int = 2
    """Checkpoints kept."""
    monitor_blocks: bool = False
    """Add the root mean square of each block's activations and their gradients to the rows of metrics.jsonl."""

    def check(self, flags: str = "train") -> None:
        """Raise UserError for a value out of range; ``flags`` is the prefix of the flags."""

        def refuse(name: str, must: str) -> UserError:
            return UserError(f"--{flags}.{name.replace('_', '-')} {getattr(self, name)} {must}")

        for name in ("batch", "log", "checkpoint", "samples", "keep_checkpoints"):
            if getattr(self, name) < 1:
                raise refuse(name, "must be 1 or more")
        for name in ("lr", "beta2", "ema", "weight_decay"):
            if not 0 <= getattr(self, name) < 1:
                raise refuse(name, "must be from 0 to below 1")
        if not (self.warmup >= 0 and self.cooldown >= 0 and self.warmup + self.cooldown <= 1):
            raise refuse(
                "warmup", f"and --{flags}.cooldown {self.cooldown} are shares of one run: from 0, together at most 1"
            )
        zero = {"max_grad_norm": "is off", "microbatch": "finds what fits", "shard_size": "is all processes"}
        zero |= {"images": "chooses for the machine", "threads": "chooses the faster of one and all"}
        for name, meaning in zero.items():
            if getattr(self, name) < 0:
                raise refuse(name, f"must be 0, which {meaning}, or more")
        if self.timeout <= 0:
            raise refuse("timeout", "is in seconds, more than 0")
        if 0 < self.images < self.batch:
            raise refuse("images", f"is less than one batch of {self.batch}")

    def check_processes(self, size: int) -> None:
        """Raise UserError if a batch, or the processes, cannot be divided evenly."""
        if self.shard_size and size % self.shard_size:
            raise UserError(f"--train.shard-size {self.shard_size} must divide the number of processes, {size}")
        if self.batch % size:
            below = self.batch // size * size
            nearest = f"{below} or {below + size}" if below else str(size)
            raise UserError(f"a batch of {self.batch} does not divide among {size} processes; nearest: {nearest}")

    @property
    def steps(self) -> int:
        """Optimiser steps in all; images beyond the last whole batch are not used."""
        return self.images // self.batch

    def lr_at(self, step: int) -> float:
        """The learning rate of a step, 0 the first."""
        done = step / self.steps
        rising = min(1.0, (step + 1) / (self.warmup * self.steps)) if self.warmup else 1.0
        falling = min(1.0, (1 - done) / self.cooldown) if self.cooldown else 1.0
        return self.lr * rising * falling

    def due(self, step: int) -> set[str]:
        """Which of ``log``, ``samples`` and ``checkpoint`` are due after ``step`` steps; all of them after the last."""
        after, before = step * self.batch, (step - 1) * self.batch
        every = {"log": self.log, "samples": self.samples, "checkpoint": self.checkpoint}
        return {name for name, images in every.items() if step == self.steps or before // images != after // images}

    def shards(self, size: int) -> bool:
        """Whether parameters are sharded among ``size`` processes."""
        return size > 1 and self.parallel == "fsdp"

    def precision_on(self, device: torch.device) -> str:
        """The precision of matrix products on a device: fp32, tf32 or bf16."""
        if self.precision == "auto":
            return "bf16" if device.type == "cuda" else "fp32"
        return "fp32" if self.precision == "bf16" and device.type == "cpu" and not cpu_has_bf16() else self.precision

    def compiles_on(self, device: torch.device) -> bool:
        """Whether blocks are compiled on a device."""
        return device.type == "cuda" if self.compile == "auto" else self.compile == "on"

    def autocast(self, device: torch.device) -> torch.autocast:
        """The context networks run in: bfloat16 matrix products, or nothing."""
        return torch.autocast(device.type, torch.bfloat16, enabled=self.precision_on(device) == "bf16")

    def matmul_precision(self, device: torch.device) -> AbstractContextManager:
        """The context a run is in: float32 matrix products in TF32 or not; nothing in bf16."""
        precision = self.precision_on(device)
        return nullcontext() if precision == "bf16" else matmul_precision(precision == "tf32")
