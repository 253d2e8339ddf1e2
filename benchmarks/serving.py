"""The server under load: images/s and waiting times of 1, 8 and 64 clients; requests joined by step, by batch, or not at all.

    python benchmarks/serving.py [--json benchmarks/results/serving-cpu.json] [--requests 2000]

Every client asks for one image after another, each of a seed of its own, and looks whether it got that seed's image. By step
is what `ditlab play` does: a request joins those under way at their next step. By batch waits until all are done; the
difference shows where requests are of different length. The last rows
send so many requests to one server and watch its memory.
"""

from __future__ import annotations

import argparse
import base64
import io
import json
import resource
import socket
import statistics
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import contextmanager
from multiprocessing import get_context
from pathlib import Path

import httpx
import numpy as np
import torch
import uvicorn
from PIL import Image
from rich.console import Console
from rich.table import Table

from ditlab import load
from ditlab.pipelines import Pipeline
from ditlab.playground.api import Limits, Served, build_app
from ditlab.playground.batcher import Batcher
from ditlab.playground.compute import computed
from ditlab.runtime.device import keep_memory

STEPS, MIXED, SAMPLER = (10,), (5, 10, 15, 20), "euler"  # of a request, by its seed
CLIENTS = (1, 8, 64)
SEEDS = 64
PARTS = 4  # of the last rows


class ByBatch(Batcher):
    """Lets requests in when all before them are done."""

    def _admit(self) -> None:
        if not self._loops:
            super()._admit()


@contextmanager
def listening(model: Pipeline, most: int, kind: type[Batcher]) -> Iterator[str]:
    """The address of a server in this process."""
    served = Served({"model": model}, Limits(), most, waiting=1024)
    if kind is not Batcher:
        served.batchers["model"].close()
        served.batchers["model"] = kind(model, most, 1024)
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listener.bind(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(build_app(served), log_level="error"))
    thread = threading.Thread(target=server.run, args=([listener],))
    thread.start()
    while not server.started:
        time.sleep(0.01)
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join()
        served.close()


def measure(
    address: str, clients: int, requests: int, steps: tuple[int, ...], expected: dict[tuple[int, int], np.ndarray]
) -> dict[str, float]:
    """Images/s, waiting times, and how many answers were not the image of their seed."""
    waits, wrong = [0.0] * requests, [0] * requests
    local = threading.local()

    def one(k: int) -> None:
        client = getattr(local, "client", None) or httpx.Client(timeout=600, verify=False)  # certificates take 20 ms
        local.client = client
        began = time.perf_counter()
        seed = k % SEEDS
        body = {"prompt": str(seed % 10), "seed": seed, "steps": steps[seed % len(steps)], "sampler": SAMPLER}
        answer = client.post(f"{address}/v1/images/generations", json=body).json()
        waits[k] = time.perf_counter() - began
        found = np.asarray(Image.open(io.BytesIO(base64.b64decode(answer["data"][0]["b64_json"]))))
        wrong[k] = int(np.abs(found.astype(int) - expected[seed, int(body["steps"])]).max() > 2)

    began = time.perf_counter()
    with ThreadPoolExecutor(clients) as pool:
        list(pool.map(one, range(requests)))
    seconds = time.perf_counter() - began
    return {
        "images_per_second": requests / seconds,
        "p50": statistics.median(waits),
        "p99": float(np.quantile(waits, 0.99)),
        "wrong": sum(wrong),
    }


def _memory() -> float:
    """MiB of this process that are in memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize() / 2**20


def _measure_all(
    model: Pipeline, measured: Callable[[str, int, int, tuple[int, ...]], dict[str, float]], each: int, many: int
) -> list[dict[str, object]]:
    """A row for each number of clients and way of joining, and one of many requests."""
    rows = list[dict[str, object]]()
    kinds = (("one at a time", 1, Batcher), ("by batch", 64, ByBatch), ("by step", 64, Batcher))
    asked = [(clients, STEPS, "") for clients in CLIENTS] + [(CLIENTS[-1], MIXED, ", 5 to 20 steps")]
    for clients, steps, words in asked:
        for name, most, kind in kinds:
            with listening(model, most, kind) as address:
                measured(address, clients, clients, steps)  # warm
                row = measured(address, clients, max(each if clients > 1 else each // 4, clients), steps)
            rows.append({"clients": clients, "requests": name + words, **row})
    with listening(model, 64, Batcher) as address:
        memory = [_memory()]
        for part in range(PARTS):
            row = measured(address, 64, many // PARTS, STEPS)
            memory.append(_memory())
            rows.append({"clients": 64, "requests": f"by step, to request {many * (part + 1) // PARTS:,}", **row})
            rows[-1]["grown_mib"] = memory[-1] - memory[-2]
    return rows


def main() -> None:
    """Run what the flags say."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="fashion")
    parser.add_argument("--requests", type=int, default=2000, help="of the rows that watch memory")
    parser.add_argument("--each", type=int, default=256, help="requests of every other row")
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    keep_memory()
    model = computed(load, given.model)
    device = f"CPU, {torch.get_num_threads()} threads"
    expected = {
        (seed, steps): computed(model.sample, [str(seed % 10)], seed=seed, steps=steps, sampler=SAMPLER)[0, ..., 0]
        for seed in range(SEEDS)
        for steps in {*STEPS, *MIXED}
    }
    # Clients are elsewhere: the server's threads do not hold them up.
    with ProcessPoolExecutor(1, get_context("spawn")) as elsewhere:
        rows = _measure_all(
            model,
            lambda *asked: elsewhere.submit(measure, *asked, expected).result(),
            given.each,
            given.requests,
        )
    table = Table(title=f"{given.model}, {SAMPLER} {STEPS[0]} steps, {device}", title_justify="left")
    for column in ("clients", "requests", "images/s", "p50, s", "p99, s", "wrong images", "memory grown, MiB"):
        table.add_column(column, justify="left" if column == "requests" else "right")
    for row in rows:
        numbers = (f"{row['images_per_second']:.1f}", f"{row['p50']:.2f}", f"{row['p99']:.2f}", str(row["wrong"]))
        table.add_row(
            str(row["clients"]), str(row["requests"]), *numbers, f"{row['grown_mib']:.0f}" if "grown_mib" in row else ""
        )
    Console(width=None if Console().is_terminal else 140).print(table)
    if given.json is not None:
        given.json.parent.mkdir(parents=True, exist_ok=True)
        given.json.write_text(json.dumps({"device": device, "torch": torch.__version__, "rows": rows}, indent=2) + "\n")


if __name__ == "__main__":
    main()
