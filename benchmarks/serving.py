"""The HTTP API under load: images/s and latency with 1, 8 and 64 clients.

    python benchmarks/serving.py [--quick] [--json benchmarks/results/serving-cpu.json] [--requests 2000]
    python benchmarks/serving.py --against OTHER_CHECKOUT [--quick]

Each client requests one image after another, and compares it with the image of its seed. Without ``--against``: batching by
step, which is what ``ditlab play`` does (a request joins the running ones at their next step), batching by batch (it waits
until all running ones have finished), and one request at a time; the last rows measure the growth of memory. With
``--against``: this checkout and another one, each as a process of its own, measured in turn.
"""

from __future__ import annotations

import base64
import contextlib
import io
import json
import re
import resource
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import httpx
import numpy as np
import torch
from PIL import Image
from rich.console import Console
from rich.table import Table
from table import Row, arguments, compare, show

from ditlab import load
from ditlab.pipelines import Pipeline
from ditlab.playground.api import build_app
from ditlab.playground.batcher import Batcher
from ditlab.playground.compute import run_on_compute_thread
from ditlab.playground.request import Request
from ditlab.playground.served import Limits, ModelServer
from ditlab.playground.server import Server, bind
from ditlab.runtime.device import keep_memory

STEPS, MIXED, SAMPLER = (10,), (5, 10, 15, 20), "euler"  # steps of a request, by its seed
LOADS = ((1, STEPS, ""), (8, STEPS, ""), (64, STEPS, ""), (64, MIXED, ", 5 to 20 steps"))
SEEDS = 64
PARTS = 4  # of the requests that measure memory
ROOT = Path(__file__).resolve().parent.parent
Images = dict[tuple[int, int], np.ndarray]  # by seed and steps


class ByBatch(Batcher):
    """Starts waiting requests only after all running ones have finished."""

    def _take_waiting(self) -> list[list[Request]]:
        return [] if self._groups else super()._take_waiting()


@contextmanager
def listening(model: Pipeline, max_images: int, kind: type[Batcher]) -> Iterator[str]:
    """The address of a server in this process."""
    models = ModelServer({"model": model}, Limits(), max_images, max_queue=1024)
    models.batchers["model"] = kind(model, max_images, 1024)
    listener = bind("127.0.0.1", 0)
    server = Server(build_app(models), models)
    thread = threading.Thread(target=server.run, args=([listener],))
    thread.start()
    while not server.started:
        time.sleep(0.01)
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join()
        models.close()


@contextmanager
def checkout_server(root: Path, model: str) -> Iterator[str]:
    """The address of ``ditlab play`` of a checkout, in a process of its own."""
    command = [sys.executable, "-m", "ditlab", "play", model, "--port", "0"]
    running = subprocess.Popen(command, cwd=root, stdout=subprocess.PIPE, text=True)
    try:
        assert running.stdout is not None
        found = re.search(r"http://[\d.:]+", running.stdout.readline())
        assert found, f"the server of {root} did not start"
        while running.poll() is None:
            with contextlib.suppress(httpx.ConnectError):
                httpx.get(f"{found[0]}/health")
                break
            time.sleep(0.05)
        yield found[0]
    finally:
        running.terminate()
        running.wait()


def measure(address: str, clients: int, requests: int, steps: tuple[int, ...], expected: Images) -> dict[str, float]:
    """Images/s, latency, and the number of responses that were not the image of their seed."""
    seconds, wrong = [0.0] * requests, [0] * requests
    local = threading.local()

    def generate(k: int) -> None:
        client = getattr(local, "client", None) or httpx.Client(timeout=600, verify=False)  # certificates take 20 ms
        local.client = client
        started = time.perf_counter()
        seed = k % SEEDS
        body = {"prompt": str(seed % 10), "seed": seed, "steps": steps[seed % len(steps)], "sampler": SAMPLER}
        response = client.post(f"{address}/v1/images/generations", json=body).json()
        seconds[k] = time.perf_counter() - started
        image = np.asarray(Image.open(io.BytesIO(base64.b64decode(response["data"][0]["b64_json"]))))
        wrong[k] = int(np.abs(image.astype(int) - expected[seed, int(body["steps"])]).max() > 2)

    started = time.perf_counter()
    with ThreadPoolExecutor(clients) as pool:
        list(pool.map(generate, range(requests)))
    return {
        "images_per_second": requests / (time.perf_counter() - started),
        "p50": statistics.median(seconds),
        "p99": float(np.quantile(seconds, 0.99)),
        "wrong": sum(wrong),
    }


def _memory() -> float:
    """Resident memory of this process in MiB."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize() / 2**20


def measure_batching(
    model: Pipeline, measured: Callable[[str, int, int, tuple[int, ...]], dict[str, float]], each: int, many: int
) -> list[dict[str, object]]:
    """A row for each load and way of batching, and rows of many requests that measure memory."""
    rows = list[dict[str, object]]()
    kinds = (("one at a time", 1, Batcher), ("by batch", 64, ByBatch), ("by step", 64, Batcher))
    for clients, steps, words in LOADS:
        for name, max_images, kind in kinds:
            with listening(model, max_images, kind) as address:
                measured(address, clients, clients, steps)  # warm-up
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


def measure_against(peer: Path, model: str, expected: Images, each: int, rounds: int) -> Iterator[Row]:
    """A row for each load: this checkout's server and another's, in turn."""
    with checkout_server(ROOT, model) as ours, checkout_server(peer, model) as theirs:
        for clients, steps, words in LOADS:
            count = max(each if clients > 1 else each // 4, clients)
            seconds: dict[str, list[float]] = {ours: [], theirs: []}
            for turn in range(rounds + 1):
                for address in (ours, theirs):
                    row = measure(address, clients, count, steps, expected)
                    assert row["wrong"] == 0, f"{row['wrong']} wrong images from {address}"
                    if turn:  # the first is the warm-up
                        seconds[address].append(count / row["images_per_second"])
            name = f"{clients} client{'s' * (clients > 1)}{words}"
            yield compare(
                name, str(peer), torch.device("cpu"), "fp32", "images/s", count, seconds[ours], seconds[theirs]
            )


def main() -> None:
    """Run what the flags select."""
    parser = arguments(__doc__ or "")
    parser.add_argument("--model", default="fashion")
    parser.add_argument("--requests", type=int, help="of the rows that measure memory; 2000, with --quick 400")
    parser.add_argument("--each", type=int, help="requests of every other row; 256, with --quick 64")
    parser.add_argument("--against", type=Path, help="another checkout, to measure in turn with this one")
    options = parser.parse_args()
    each, many = options.each or (64 if options.quick else 256), options.requests or (400 if options.quick else 2000)
    keep_memory()
    model = run_on_compute_thread(load, options.model)
    device = f"CPU, {torch.get_num_threads()} threads"
    expected = {
        (seed, steps): run_on_compute_thread(model.sample, [str(seed % 10)], seed=seed, steps=steps, sampler=SAMPLER)[
            0, ..., 0
        ]
        for seed in range(SEEDS)
        for steps in {*STEPS, *MIXED}
    }
    title = f"{options.model}, {SAMPLER} {STEPS[0]} steps, {device}"
    if options.against is not None:
        rounds = 3 if options.quick else 5
        show(title, measure_against(options.against, options.model, expected, each, rounds), options.json)
        return
    # The clients run in another process, so that they do not delay the server's threads.
    with ProcessPoolExecutor(1, get_context("spawn")) as pool:
        rows = measure_batching(
            model, lambda *load: pool.submit(partial(measure, expected=expected), *load).result(), each, many
        )
    table = Table(title=title, title_justify="left")
    for column in ("clients", "requests", "images/s", "p50, s", "p99, s", "wrong images", "memory growth, MiB"):
        table.add_column(column, justify="left" if column == "requests" else "right")
    for row in rows:
        numbers = (f"{row['images_per_second']:.1f}", f"{row['p50']:.2f}", f"{row['p99']:.2f}", str(row["wrong"]))
        grown = f"{row['grown_mib']:.0f}" if "grown_mib" in row else ""
        table.add_row(str(row["clients"]), str(row["requests"]), *numbers, grown)
    Console(width=None if Console().is_terminal else 140).print(table)
    if options.json is not None:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(
            json.dumps({"device": device, "torch": torch.__version__, "rows": rows}, indent=2) + "\n"
        )


if __name__ == "__main__":
    main()
