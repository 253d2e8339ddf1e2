"""Time of the kernel distance of 1,290 samples to 1,797 real images: every pair once, and subset by subset, in turn.

python benchmarks/kernel_distance.py
"""

from __future__ import annotations

import time

import numpy as np

from ditlab.evaluate import metrics

WIDTH, ROUNDS = 1280, 3


def main() -> None:
    """Print the table."""
    random = np.random.default_rng(0)
    real, generated = (random.normal(size=(count, WIDTH)).astype(np.float32) for count in (1797, 1290))
    ways = {"every pair once": metrics.ALL_PAIRS, "subset by subset": 0}
    seconds: dict[str, list[float]] = {way: [] for way in ways}
    for _ in range(ROUNDS):
        for way, metrics.ALL_PAIRS in ways.items():
            start = time.perf_counter()
            metrics.kernel_distance(real, generated)
            seconds[way].append(time.perf_counter() - start)
    print("| way | s |\n|---|---|")
    for way, found in seconds.items():
        print(f"| {way} | {min(found):.2f} to {max(found):.2f} |")


if __name__ == "__main__":
    main()
