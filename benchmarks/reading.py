"""Whether reading keeps up with training: rows/s from the latent cache against images/s of the network.

    python benchmarks/reading.py [--rows 40000] [--json benchmarks/results/reading-cpu.json]

Rows have the size of ImageNet's at 256 px: 8x32x32 float16 moments, 16 KiB. They are read in training order and their
checksums verified. "Reading and drawing" adds the random draws of a step. The peer is a forward and backward pass of
DiT-S/2 on this device.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from table import Row, arguments, compare, in_turn, show
from training import SHAPE, Pass, ours

from ditlab.data import DataConfig, DataOrder
from ditlab.data.arrays import ArraySource
from ditlab.data.dataset import Dataset
from ditlab.diffusion import DiffusionConfig, Positions
from ditlab.encoders import Autoencoder, LatentCache, cache_key, encode
from ditlab.models import DiTConfig

BATCH = 256


def cache_of(rows: int, folder: Path) -> LatentCache:
    """A cache of random images; the identity autoencoder uses their 8 channels as moments."""
    random = np.random.default_rng(0)
    pixels = random.integers(0, 256, (rows, 32, 32, 8), np.uint8)
    source = ArraySource("noise", pixels, np.arange(rows) % 1000, tuple(str(label) for label in range(1000)))
    dataset, autoencoder = Dataset(source, DataConfig(channels=8)), Autoencoder(8, 8, 1)
    encode(dataset, autoencoder, folder, flip=False, batch=1024)
    return LatentCache(folder, cache_key(dataset, autoencoder, False))


def measure(device: torch.device, count: int, rounds: int) -> Iterator[Row]:
    """Reading alone, and reading with the draws of a step, each against the network."""
    batch = 16
    step = Pass(ours(DiTConfig.named("S/2"), device, compiled=True), batch, device, "bf16")
    loss = DiffusionConfig().build_loss()
    with tempfile.TemporaryDirectory() as folder:
        began = time.perf_counter()
        cache = cache_of(count, Path(folder))
        more = {"bytes": f"{count * 16 // 1024} MiB in {time.perf_counter() - began:.0f} s"}
        order, position = DataOrder(count, 0), [0]

        def read() -> None:
            indices, flips = order.batch(position[0], BATCH)
            position[0] += BATCH
            cache.read(indices, flips)

        def read_and_draw() -> None:
            read()
            draws = loss.draw(Positions(0, position[0] * BATCH, BATCH), (4, 32, 32))
            draws["posterior"] = torch.randn(BATCH, 4, 32, 32)

        for name, work in (("reading", read), ("reading and drawing", read_and_draw)):
            mine, others = in_turn(work, step, device, rounds, 1)
            scaled = [other * BATCH / batch for other in others]  # seconds of the network for as many images
            peer = f"DiT-S/2 step, {'x'.join(map(str, SHAPE.latent.shape))}"
            yield compare(
                f"{name}, {count:,} rows of 16 KiB",
                peer,
                device,
                "bf16 compiled",
                "rows/s",
                BATCH,
                mine,
                scaled,
                **more,
            )


def main() -> None:
    """Run the benchmark."""
    parser = arguments(__doc__ or "")
    parser.add_argument("--rows", type=int, default=0)
    given = parser.parse_args()
    count = given.rows or (8192 if given.quick else 40_000)
    show("Reading latents", measure(torch.device(given.device), count, 3 if given.quick else 9), given.json)


if __name__ == "__main__":
    main()
