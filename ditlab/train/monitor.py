"""Callbacks that measure the network: the held-out loss, and activations and gradients by block."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from ditlab.diffusion import Positions
from ditlab.train.callbacks import Callback, Event, Row
from ditlab.train.task import Batch, Task

HELD_OUT_IMAGES = 256
BATCH = 32
SHARE = 32  # the held-out loss takes a forward pass of an image for every 32 trained on: 1% of the work
MONITORED = 8  # images


def _inputs(task: Task, indices: np.ndarray, draws: Batch, device: torch.device) -> tuple[Batch, Batch]:
    """Images, not mirrored, and the draws of the same numbers, on a device."""
    rows = {name: value[torch.from_numpy(indices)] for name, value in draws.items()}
    batch = task.read(indices, np.zeros(len(indices), bool), rows)
    return tuple({name: value.to(device) for name, value in each.items()} for each in (batch, rows))  # type: ignore[return-value]


class HeldOutLoss(Callback):
    """Add ``held_out_loss`` to the metrics: the averaged weights' loss of fixed images at fixed times and noise.

    It is comparable from row to row, and between runs of the same data and loss, where the training loss is noisy. ``task``
    is like the one in training, with the same loss and autoencoder; the first ``count`` images of its data are used.
    """

    def __init__(self, task: Task, count: int = HELD_OUT_IMAGES):
        self.task, self.count = task, min(count, task.count)
        self.draws = task.evaluation_draws(Positions(0, 0, self.count))

    def on_log(self, event: Event) -> Row:
        """See Callback. Every 32 images trained on for each held out, at most every row, and at the end."""
        every = max(event.config.log, SHARE * self.count)
        if not event.last and event.images // every == (event.images - event.config.log) // every:
            return {}
        share = -(-self.count // event.processes.size)
        first = event.processes.rank * share
        total = torch.zeros((), dtype=torch.float64)
        with torch.no_grad(), event.config.autocast(event.device):
            for start in range(first, first + share, BATCH):  # as often in every process: shards are gathered together
                positions = np.arange(start, min(start + BATCH, first + share))
                inputs = _inputs(self.task, positions % self.count, self.draws, event.device)
                losses = self.task.loss(event.ema.module, *inputs)
                total += losses.double().cpu()[torch.from_numpy(positions < self.count)].sum()
        return {"held_out_loss": float(event.processes.all_reduce_sum(total)) / self.count}


class BlockMonitor(Callback):
    """Add ``activation_rms`` and ``gradient_rms`` to the metrics: of the output of each block, in order of execution.

    Of the mean loss of a few training images, in a pass of its own without torch.compile; NaN and infinity are None.
    """

    def on_log(self, event: Event) -> Row:
        """See Callback."""
        task, module, outputs = event.task, event.task.module, []
        indices = np.arange(MONITORED) % task.count
        draws = task.evaluation_draws(Positions(0, 0, MONITORED))

        def keep(_: object, __: object, output: Tensor | tuple[Tensor, ...]) -> None:
            output = output if isinstance(output, Tensor) else output[0]
            if output.requires_grad:  # not in the first pass of activation checkpointing
                output.retain_grad()
                outputs.append(output)

        handles = [part.register_forward_hook(keep) for part in task.parts(module)]
        with torch.compiler.set_stance("force_eager"):
            with event.config.autocast(event.device):
                losses = task.loss(module, *_inputs(task, indices, draws, event.device))
            losses.mean().backward()
        for handle in handles:
            handle.remove()
        outputs = outputs[: len(handles)]
        module.zero_grad(set_to_none=True)
        gradients = [output.grad for output in outputs if output.grad is not None]
        return {"activation_rms": _rms(outputs), "gradient_rms": _rms(gradients)}


def _rms(tensors: list[Tensor]) -> list[float | None]:
    squares = [tensor.detach().float().square().mean() for tensor in tensors]
    values = torch.stack(squares).sqrt().tolist() if squares else []
    return [value if np.isfinite(value) else None for value in values]
