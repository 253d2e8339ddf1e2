"""Training speed: forward and backward of ditlab's DiT and of its peers, same shapes and data, in turn.

    python benchmarks/training.py [--official DiT_CHECKOUT] [--json benchmarks/results/training-cpu.json]

On a GPU also whole steps, AdamW and average included, at the batch that is given, with their model FLOPs utilisation (MFU).
"""

from __future__ import annotations

import gc
from collections.abc import Iterator
from pathlib import Path

import torch
from peers import available, build
from table import Row, arguments, compare, in_turn, show
from torch import nn

from ditlab.models import Condition, DiT, DiTConfig, NetworkInput, cost
from ditlab.train.ema import EMA
from ditlab.train.speed import matrix_rate

SHAPE = NetworkInput(4, 32, 32, classes=1000, learned_variance=True)
H100 = 989e12  # dense bfloat16 FLOP/s by its data sheet


def ours(config: DiTConfig, device: torch.device, compiled: bool) -> DiT:
    """Our network with every weight drawn, so that no gate is zero."""
    network = DiT(config, SHAPE).initialise(torch.Generator().manual_seed(0)).to(device)
    if compiled:
        for block in network.blocks:
            block.compile()
    return network


class Step:
    """Forward and backward of one batch; with an optimiser the whole step."""

    def __init__(self, network: nn.Module, batch: int, device: torch.device, precision: str, whole: bool = False):
        self.network, self.device, self.bf16 = network.train(), device, precision == "bf16"
        generator = torch.Generator().manual_seed(0)
        self.x = torch.randn(batch, 4, 32, 32, generator=generator).to(device)
        self.t = torch.randint(1000, (batch,), generator=generator).to(device)
        self.condition = Condition(torch.randint(1000, (batch,), generator=generator).to(device))
        self.optimiser = torch.optim.AdamW(network.parameters(), lr=1e-4, fused=True) if whole else None
        self.average = EMA(network, 0.9999) if whole else None

    def __call__(self) -> None:
        """Once."""
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16):
            output = self.network(self.x, self.t, self.condition)
        output.float().square().mean().backward()
        if self.optimiser is not None and self.average is not None:
            self.optimiser.step()
            self.average.update(10**6)
        self.network.zero_grad(set_to_none=True)


def rows(
    model: str, batch: int, device: torch.device, official: Path | None, rounds: int, repeats: int, quick: bool
) -> Iterator[Row]:
    """All comparisons of one model; the first two where it has to be quick."""
    config = DiTConfig.named(model)
    name, unit = f"{model} forward and backward, batch {batch}", "images/s"
    # (our precision, compiled, the peer's precision, is the peer compiled)
    kinds = [("bf16", True, "fp32", False), ("fp32", False, "fp32", False), ("bf16", False, "bf16", False)]
    kinds.append(("bf16", True, "bf16", True))
    for peer in available(official):
        for precision, compiled, theirs, their_compile in kinds[: 2 if quick else None]:
            network, other = ours(config, device, compiled), build(peer, config, 32, official, device)
            if their_compile:
                other.compile()
            mine, others = in_turn(
                Step(network, batch, device, precision), Step(other, batch, device, theirs), device, rounds, repeats
            )
            how = f"{precision}{' compiled' if compiled else ''}"
            against = f"{peer} {theirs}{' compiled' if their_compile else ' eager'}"
            yield compare(name, against, device, how, unit, batch, mine, others)
            del network, other
            clean(device)


def whole_steps(model: str, batch: int, device: torch.device, rounds: int, repeats: int) -> Row:
    """Whole steps of ours alone, with their utilisation."""
    config = DiTConfig.named(model)
    step = Step(ours(config, device, compiled=True), batch, device, "bf16", whole=True)
    mine, _ = in_turn(step, None, device, rounds, repeats, warm=5)
    row = compare(f"{model} whole step, batch {batch}", "", device, "bf16 compiled", "images/s", batch, mine, [])
    operations = row.ours * 6e9 * cost(config, SHAPE).gmacs
    measured = matrix_rate(device, "bf16")
    row.more["MFU of the measured matrix rate"] = f"{operations / measured:.1%} of {measured / 1e12:.3g} TFLOP/s"
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
            yield whole_steps(model, batch, device, rounds, repeats)  # first: the one that is most wanted
            clean(device)
            yield from rows(model, batch, device, given.official, rounds, repeats, given.quick)

    show("Training: DiT at 32x32x4", measured(), given.json)


if __name__ == "__main__":
    main()
