"""Overhead of evaluation over its feature network: images/s of features and statistics, and of the network alone, in turn.

    python benchmarks/evaluating.py [--json benchmarks/results/evaluating-cpu.json]

ditlab's side is everything that happens to a data set the first time: reading, the network, float64 statistics of all images
and of halves, and the files in the cache folder. The peer is the network's forward pass alone, on batches that are on its
device. A ratio of 0.9 is an overhead of 10%. Files and decompositions take the same time for any number of images, so the
overhead is larger for few. Inception, which needs a GPU for this, has random weights.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path

import numpy as np
import torch
from table import Row, arguments, compare, in_turn, show

from ditlab.data import DataConfig, Dataset
from ditlab.data.arrays import ArraySource
from ditlab.evaluate import FeatureNetwork, feature_network, real_features
from ditlab.evaluate.features import full_precision, rgb
from ditlab.evaluate.inception import InceptionV3
from ditlab.evaluate.real import BATCH, CPU_BATCH
from ditlab.runtime.device import keep_memory


def network_of(name: str, side: int, device: torch.device) -> FeatureNetwork:
    """The feature network; Inception with random weights, without its file."""
    if name != "inception":
        return feature_network(name, (side, side), device=device)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "random.pth"
        torch.manual_seed(0)
        torch.save(InceptionV3().state_dict(), path)
        return feature_network(name, (side, side), str(path), device)


def row(name: str, channels: int, side: int, count: int, device: torch.device, rounds: int) -> Row:
    """One comparison on noise."""
    network = network_of(name, side, device)
    pixels = np.random.default_rng(0).integers(0, 256, (count, side, side, channels), np.uint8)
    dataset = Dataset(ArraySource("noise", pixels, np.zeros(count, np.int64), ()), DataConfig())
    part = CPU_BATCH if device.type == "cpu" else BATCH
    batches = [rgb(torch.from_numpy(pixels[start : start + part]).to(device)) for start in range(0, count, part)]

    def ours() -> None:
        shutil.rmtree(os.environ["XDG_CACHE_HOME"], ignore_errors=True)
        real_features(dataset, network)

    def theirs() -> None:
        with torch.inference_mode(), full_precision(device):
            for batch in batches:
                network(batch)

    times = in_turn(ours, theirs, device, rounds, 1, warm=1)
    title = f"{network.name} at {network.side}, {count:,} images of {channels}x{side}x{side}"
    return compare(title, "the network alone", device, "fp32", "images/s", count, *times)


def main() -> None:
    """Run the benchmark."""
    given = arguments(__doc__ or "").parse_args()
    keep_memory()  # as the command line does; only the network alone gains from it
    device = torch.device(given.device)
    jobs, rounds = [("efficientnet-lite0", 1, 28, 16_384)], 3
    if device.type == "cuda":
        rounds = 5
        jobs = [
            ("efficientnet-lite0", 1, 28, 32_768),
            ("efficientnet-lite0", 3, 256, 8192),
            ("inception", 3, 256, 8192),
        ]
    if given.quick:
        jobs, rounds = [("efficientnet-lite0", 1, 28, 1024)], 3
    with tempfile.TemporaryDirectory() as folder:
        os.environ["XDG_CACHE_HOME"] = str(Path(folder) / "cache")
        show("Features and statistics", (row(*job, device, rounds) for job in jobs), given.json)


if __name__ == "__main__":
    main()
