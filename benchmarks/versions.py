"""This checkout against another one (an earlier commit), in turn: a training step and sampling.

    python benchmarks/versions.py OTHER [--json FILE] [--quick]

OTHER is the folder of a clone. Each round starts one process a version; ratios above 1: this checkout is faster.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import torch
from table import arguments, compare, show

ROOT = Path(__file__).resolve().parent.parent
WORKLOADS = (  # name, unit and number of units of one call
    ("training step, DiT-S/2, batch 8, fp32", "images/s", 8),
    ("training step, DiT-S/2, batch 8, bf16, compiled", "images/s", 8),
    ("sampling, fashion, 16 images, 10 steps", "images/s", 16),
)
# Runs in both versions: 0.1 has NetworkInput and Condition(labels), 0.2 NetworkSpec and Condition.of_labels.
WORK = """
import json, sys, time
import torch
import ditlab
from ditlab.models import Condition, DiT, DiTConfig
torch.set_num_threads(2)
def network(size, side):
    config = DiTConfig.named(size)
    try:
        from ditlab.models import LatentSpec, labelled
        spec = labelled(LatentSpec(4, (side, side)), 1000, learned_variance=True)
    except ImportError:
        from ditlab.models import NetworkInput
        spec = NetworkInput(4, side, side, classes=1000, learned_variance=True)
    return DiT(config, spec).initialise(torch.Generator().manual_seed(0))
def best(work, times):
    work()
    seconds = []
    for _ in range(times):
        start = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - start)
    return min(seconds)
net = network("S/2", 32)
optimiser = torch.optim.AdamW(net.parameters(), 1e-4, fused=True)
x, t = torch.randn(8, 4, 32, 32), torch.rand(8) * 999
labels = torch.arange(8)
condition = Condition.of_labels(labels) if hasattr(Condition, "of_labels") else Condition(labels)
def step(bf16=False):
    optimiser.zero_grad(set_to_none=True)
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        loss = net(x, t, condition).float().square().mean()
    loss.backward()
    optimiser.step()
times = int(sys.argv[1])
found = {"training step, DiT-S/2, batch 8, fp32": best(step, times)}
for block in net.blocks:
    block.compile()
found["training step, DiT-S/2, batch 8, bf16, compiled"] = best(lambda: step(True), times)
model = ditlab.load("fashion")
found["sampling, fashion, 16 images, 10 steps"] = best(
    lambda: model.sample(count=16, steps=10, sampler="ddim", guidance=1.5), times)
print(json.dumps(found))
"""


def measure(folder: Path, times: int) -> dict[str, float]:
    """Seconds of each workload, the best of ``times``, in a process of its own."""
    environment = {**os.environ, "PYTHONPATH": str(folder)}
    command = [sys.executable, "-c", WORK, str(times)]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    """Alternate the two versions and print the ratios of their rates."""
    parser = arguments(str(__doc__).splitlines()[0])
    parser.add_argument("other", type=Path, help="folder of a clone of the other version")
    options = parser.parse_args()
    rounds, times = (2, 3) if options.quick else (5, 5)
    pairs = [(measure(ROOT, times), measure(options.other.resolve(), times)) for _ in range(rounds)]
    rows = [
        compare(
            name, "the other version", torch.device("cpu"), "", unit, count, [ours[name] for ours, _ in pairs],
            [other[name] for _, other in pairs],
        )
        for name, unit, count in WORKLOADS
    ]  # fmt: skip
    show("This version against another", rows, options.json)


if __name__ == "__main__":
    main()
