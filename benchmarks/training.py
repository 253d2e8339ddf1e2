"""Training speed: whole steps of ditlab, and forward and backward passes of its DiT and its peers, same shapes, in turn.

    python benchmarks/training.py [--official DiT_CHECKOUT] [--json benchmarks/results/training-cpu.json]

A whole step is `Trainer.step` as a run calls it, with batches from its `Prefetcher`: draws, copies, forward, backward,
accumulation, norm, clipping, AdamW, EMA and metrics. Its model FLOPs utilisation (MFU) is given relative to the measured
rate of a matrix product, and on a GPU also to an H100's data sheet. On a GPU whole steps are measured first, then peers in
the same precision and compiled.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import numpy as np
import torch
from peers import available, build
from table import Row, arguments, compare, in_turn, seconds, show
from torch import nn

from ditlab.data import DataOrder, Images
from ditlab.diffusion import DiffusionConfig
from ditlab.encoders import Autoencoder
from ditlab.models import Condition, DiT, DiTConfig, LatentSpec, cost, labelled
from ditlab.runtime.distributed import ALONE
from ditlab.train import DiffusionTask, TrainConfig
from ditlab.train.prefetch import Prefetcher
from ditlab.train.profile import Profile
from ditlab.train.speed import matrix_rate
from ditlab.train.trainer import Trainer

SHAPE = labelled(LatentSpec(4, (32, 32)), 1000, learned_variance=True)
H100 = 989e12  # dense bfloat16 FLOP/s by its data sheet
STEPS = {"cuda": 12, "cpu": 3}  # timed, after as many as compile and warm up


def ours(config: DiTConfig, device: torch.device, compiled: bool = False) -> DiT:
    """Our network with PyTorch's initial weights, made on the device, so that no gate is zero and XL/2 takes no 20 seconds."""
    with device:
        network = DiT(config, SHAPE)
    if compiled:
        for block in network.blocks:
            block.compile()
    return network


class Pass:
    """Forward and backward of one batch."""

    def __init__(self, network: nn.Module, batch: int, device: torch.device, precision: str):
        self.network, self.device, self.bf16 = network.train(), device, precision == "bf16"
        generator = torch.Generator().manual_seed(0)
        self.x = torch.randn(batch, 4, 32, 32, generator=generator).to(device)
        self.t = torch.randint(1000, (batch,), generator=generator).to(device)
        self.condition = Condition.of_labels(torch.randint(1000, (batch,), generator=generator).to(device))

    def __call__(self) -> None:
        """Once."""
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16):
            output = self.network(self.x, self.t, self.condition)
        output.float().square().mean().backward()
        self.network.zero_grad(set_to_none=True)


def rows(
    model: str, batch: int, device: torch.device, official: Path | None, rounds: int, repeats: int, quick: bool
) -> Iterator[Row]:
    """All comparisons of one model; the first one if it has to be quick."""
    config = DiTConfig.named(model)
    name, unit = f"{model} forward and backward, batch {batch}", "images/s"
    # (our precision, compiled, the peer's precision, is the peer compiled)
    kinds = [("bf16", True, "bf16", True), ("bf16", False, "bf16", False), ("bf16", True, "fp32", False)]
    kinds.append(("fp32", False, "fp32", False))
    for peer in available(official):
        for precision, compiled, theirs, their_compile in kinds[: 1 if quick else None]:
            network, other = ours(config, device, compiled), build(peer, config, 32, official, device)
            if their_compile:
                other.compile()
            mine, others = in_turn(
                Pass(network, batch, device, precision), Pass(other, batch, device, theirs), device, rounds, repeats
            )
            how = f"{precision}{' compiled' if compiled else ''}"
            against = f"{peer} {theirs}{' compiled' if their_compile else ' eager'}"
            yield compare(name, against, device, how, unit, batch, mine, others)
            del network, other
            clean(device)


def whole_steps(model: str, batch: int, microbatch: int, device: torch.device, rounds: int) -> Row:
    """Whole steps of a run on data in memory, with their utilisation."""
    config, random = DiTConfig.named(model), np.random.default_rng(0)
    pixels = random.integers(0, 256, (4 * batch, 4, 32, 32), np.uint8)
    data = Images(pixels, random.integers(0, 1000, 4 * batch), (), "random", ())
    task = DiffusionTask(ours(config, device), DiffusionConfig().build_loss(), Autoencoder(4, 4, 1), data)
    steps = STEPS[device.type]
    train = TrainConfig(
        images=batch * steps * (rounds + 1), batch=batch, microbatch=microbatch, max_grad_norm=1.0, precision="bf16",
        compile="on",
    )  # fmt: skip
    trainer, idle = Trainer(task, train, ALONE, device), Profile(None, print)
    order = DataOrder(task.count, 0, False)
    with closing(Prefetcher(task, order, 0, batch, train.steps, 0, ALONE, device)) as prefetcher:
        number = iter(range(train.steps))

        def step() -> None:
            trainer.step(next(number), *prefetcher.take(), idle)

        seconds(step, device, steps)  # compiles
        taken = [seconds(step, device, steps) for _ in range(rounds)]
    name = f"{model} whole step, batch {batch} in microbatches of {trainer.microbatch}"
    row = compare(name, "", device, "bf16 compiled", "images/s", batch, taken, [])
    operations = row.ours * 6e9 * cost(config, SHAPE).gmacs
    measured = matrix_rate(device, "bf16")
    row.more["MFU of the measured matrix product rate"] = (
        f"{operations / measured:.1%} of {measured / 1e12:.3g} TFLOP/s"
    )
    if device.type == "cuda":
        row.more["MFU of 989 TFLOP/s"] = f"{operations / H100:.1%}"
        row.more["peak memory"] = f"{torch.cuda.max_memory_allocated(device) / 2**30:.1f} GiB"
    return row


def clean(device: torch.device) -> None:
    """Forget compiled graphs and free memory."""
    gc.collect()
    torch._dynamo.reset()
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)


def main() -> None:
    """Run what the flags say."""
    parser = arguments(__doc__ or "")
    parser.add_argument("--models", default="", help="between commas; DiT-S/2, and on a GPU all of patch 2")
    parser.add_argument("--batch", type=int, default=0)
    parser.add_argument("--official", type=Path, help="a checkout of the paper's code")
    given = parser.parse_args()
    device = torch.device(given.device)
    gpu = device.type == "cuda"
    models = given.models.split(",") if given.models else ["XL/2", "L/2", "B/2", "S/2"] if gpu else ["S/2"]
    rounds, repeats = (3, 1) if given.quick else (5, 10 if gpu else 1)

    def measured() -> Iterator[Row]:
        for model in models:
            batch = given.batch or ({"XL/2": 64, "L/2": 96, "B/2": 256, "S/2": 512}.get(model, 64) if gpu else 16)
            whole, part = (max(batch, 256), max(batch, 128)) if gpu else (2 * batch, batch)  # the paper's batch
            yield whole_steps(model, whole, part, device, rounds)
            clean(device)
            yield from rows(model, batch, device, given.official, rounds, repeats, given.quick)

    show("Training: DiT at 32x32x4", measured(), given.json)


if __name__ == "__main__":
    main()
