"""Whether reading keeps up with the step: rows a second from the latent cache against images a second of the network.

    python benchmarks/reading.py [--rows 40000] [--json benchmarks/results/reading-cpu.json]

Rows are as ImageNet's at 256 px: 8x32x32 float16 moments, 16 KiB, in the order training sees them, checksums verified. The
feed adds what a step draws. The peer is DiT-S/2's forward and backward pass on this device.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from table import Row, arguments, compare, in_turn, show
from training import SHAPE, Step, ours

from ditlab.data import DataConfig, DataOrder
from ditlab.data.arrays import ArraySource
from ditlab.data.dataset import Dataset
from ditlab.diffusion import DiffusionConfig, build_loss
from ditlab.encoders import Autoencoder, LatentCache, encode, identity
from ditlab.models import DiTConfig
from ditlab.train.prefetch import step_generator

BATCH = 256


def cache_of(rows: int, folder: Path) -> LatentCache:
    """A cache of noise; the identity autoencoder makes moments of its 8 channels."""
    random = np.random.default_rng(0)
    pixels = random.integers(0, 256, (rows, 32, 32, 8), np.uint8)
    source = ArraySource("noise", pixels, np.arange(rows) % 1000, tuple(str(label) for label in range(1000)))
    dataset, autoencoder = Dataset(source, DataConfig(channels=8)), Autoencoder(8, 8, 1)
    encode(dataset, autoencoder, folder, flip=False, batch=1024)
    return LatentCache(folder, identity(dataset, autoencoder, False))


def measure(device: torch.device, count: int, rounds: int) -> Iterator[Row]:
    """Reading alone, reading with a step's draws, and the network beside them."""
    batch = 16
    step = Step(ours(DiTConfig.named("S/2"), device, compiled=True), batch, device, "bf16")
    loss = build_loss(DiffusionConfig())
    with tempfile.TemporaryDirectory() as folder:
        began = time.perf_counter()
        cache = cache_of(count, Path(folder))
        more = {"bytes": f"{count * 16 // 1024} MiB in {time.perf_counter() - began:.0f} s"}
        order, position = DataOrder(count, 0), [0]

        def read() -> None:
            indices, flips = order.batch(position[0], BATCH)
            position[0] += BATCH
            cache.read(indices, flips)

        def feed() -> None:
            read()
            draws = loss.draw(step_generator(0, position[0]), BATCH, (4, 32, 32))
            draws["posterior"] = torch.randn(BATCH, 4, 32, 32)

        for name, work in (("reading", read), ("reading and drawing", feed)):
            mine, others = in_turn(work, step, device, rounds, 1)
            scaled = [other * BATCH / batch for other in others]  # seconds the network takes for as many images
            peer = f"DiT-S/2 step, {SHAPE.channels}x{SHAPE.height}x{SHAPE.width}"
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
    """Run what the flags say."""
    parser = arguments(__doc__ or "")
    parser.add_argument("--rows", type=int, default=0)
    given = parser.parse_args()
    count = given.rows or (8192 if given.quick else 40_000)
    show("Reading latents", measure(torch.device(given.device), count, 3 if given.quick else 9), given.json)


if __name__ == "__main__":
    main()
