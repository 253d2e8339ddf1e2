"""Time of a training step's draws, of latents 4x32x32: a whole batch, and the share of one of 64 processes.

python benchmarks/draws.py
"""

from __future__ import annotations

import time

import torch

from ditlab.diffusion import DiffusionConfig, Positions

SHAPE, ROUNDS = (4, 32, 32), 5


def milliseconds(count: int) -> float:
    """The best of a few draws for ``count`` images."""
    loss, found = DiffusionConfig().build_loss(), []
    for _ in range(ROUNDS + 1):
        start = time.perf_counter()
        loss.draw(Positions(0, 0, count), SHAPE)
        found.append(1e3 * (time.perf_counter() - start))
    return min(found[1:])


def main() -> None:
    """Print the table."""
    torch.set_num_threads(1)
    print("| images | ms |\n|---|---|")
    for count in (256, 2048, 2048 // 64):
        print(f"| {count:,} | {milliseconds(count):.2f} |")


if __name__ == "__main__":
    main()
