"""The effect of keeping freed memory (`ditlab.runtime.device`): the same work with and without it, in alternation.

    python benchmarks/memory.py [--json benchmarks/results/memory-cpu.json]

The work is the feature network on batches of images, and training steps, on a CPU. At a page fault the system provides a page
of 4 KiB, filled with zeros.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import time
from collections.abc import Callable

import numpy as np
import torch
from table import Row, arguments, compare, show

from ditlab.evaluate import feature_network
from ditlab.models import Condition, DiTConfig, LatentSpec, NetworkConfig, NetworkSpec, UNetConfig, build, labelled
from ditlab.runtime.device import keep_memory

ROUNDS = 3


def features(batch: int) -> tuple[Callable[[], object], int]:
    """The feature network on noise."""
    network = feature_network("efficientnet-lite0", (28, 28))
    pixels = np.random.default_rng(0).integers(0, 256, (batch, 28, 28, 1), np.uint8)
    return lambda: network.extract(pixels), batch


def training(config: NetworkConfig, shape: NetworkSpec, batch: int) -> tuple[Callable[[], object], int]:
    """Forward, backward and AdamW."""
    network = build(config, shape).initialise(torch.Generator().manual_seed(0))
    optimiser = torch.optim.AdamW(network.parameters(), 1e-4, fused=True)
    x, t = torch.randn(batch, *shape.latent.shape), torch.rand(batch) * 1000
    condition = Condition.of_labels(torch.randint(0, 10, (batch,)))

    def step() -> None:
        optimiser.zero_grad(set_to_none=True)
        network(x, t, condition).square().mean().backward()
        optimiser.step()

    return step, batch


WORK: dict[str, Callable[[], tuple[Callable[[], object], int]]] = {
    "features, batch 32": lambda: features(32),
    "features, batch 256": lambda: features(256),
    "digits' DiT, training": lambda: training(
        DiTConfig(depth=4, width=64, heads=4, patch=2), labelled(LatentSpec(1, (8, 8)), 10), 128
    ),
    "fashion's DiT, training": lambda: training(
        DiTConfig(depth=6, width=192, heads=6, patch=1), labelled(LatentSpec(4, (7, 7)), 10), 128
    ),
    "DiT-S/2 at 16x16x4, training": lambda: training(
        DiTConfig.named("DiT-S/2"), labelled(LatentSpec(4, (16, 16)), 10), 16
    ),
    "U-Net of width 32 at 28x28, training": lambda: training(
        UNetConfig(width=32), labelled(LatentSpec(1, (28, 28)), 10), 32
    ),
}


def child(name: str, keep: bool, seconds: float) -> None:
    """Print seconds and page faults per batch."""
    if keep:
        keep_memory()
    work, batch = WORK[name]()
    for _ in range(4):
        work()
    faults, began, done = resource.getrusage(resource.RUSAGE_SELF).ru_minflt, time.perf_counter(), 0
    while time.perf_counter() - began < seconds:
        work()
        done += 1
    took = time.perf_counter() - began
    faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - faults
    print(json.dumps({"seconds": took / done, "faults": faults / done / batch, "batch": batch}))


def measured(name: str, keep: bool, seconds: float) -> dict[str, float]:
    """Measurements of a new process."""
    command = [sys.executable, __file__, "--child", name, str(int(keep)), str(seconds)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return json.loads(done.stdout.strip().splitlines()[-1])


def row(name: str, seconds: float) -> Row:
    """Compare one kind of work with and without kept memory."""
    found = {keep: [] for keep in (True, False)}
    for _ in range(ROUNDS):
        for keep, results in found.items():
            results.append(measured(name, keep, seconds))
    faults = {keep: results[-1]["faults"] for keep, results in found.items()}
    times = [[result["seconds"] for result in found[keep]] for keep in (True, False)]
    more = {"page faults an image": f"{faults[True]:.0f} against {faults[False]:.0f}"}
    device, batch = torch.device("cpu"), found[True][0]["batch"]
    return compare(name, "memory given back", device, "fp32", "images/s", batch, *times, **more)


def main() -> None:
    """Run all comparisons, or one measurement as a child process."""
    if sys.argv[1:2] == ["--child"]:
        child(sys.argv[2], sys.argv[3] == "1", float(sys.argv[4]))
        return
    given = arguments(__doc__ or "").parse_args()
    show("Freed memory kept", (row(name, 2.0 if given.quick else 6.0) for name in WORK), given.json)


if __name__ == "__main__":
    main()
