"""The same run on one process and on several, connected by gloo."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

ROOT = Path(__file__).parent.parent.parent
# Imports everything once and forks the processes of each group, with the variables that torchrun sets, one group after
# another; the processes of a group run its commands. Prints how many graphs were compiled.
DRIVER = """
import json, os, socket, sys, time, traceback
import matplotlib.figure, sklearn.datasets, torch, torch._inductor.compile_fx
import torch.distributed.checkpoint, torch.distributed.fsdp
import ditlab.recipes
from ditlab.cli.main import main
from ditlab.runtime.distributed import leave
from ditlab.train import parallel, speed

parallel.BUCKET_MB = 0.005  # so that a block's gradients fill several buckets
speed.matrix_rate = lambda *_: 1e10  # not measured by every process of every run

def work(rank, size, port, commands):
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(size), "MASTER_ADDR": "127.0.0.1"}
    os.environ |= {"MASTER_PORT": str(port)}
    for arguments in commands:
        torch._dynamo.reset()
        torch._dynamo.utils.counters.clear()
        main(arguments)
        graphs = torch._dynamo.utils.counters["aot_autograd"]["total"]
        if rank == 0:
            print(f"{graphs} graphs: {' '.join(arguments)}", flush=True)
    leave()

for size, commands in json.loads(sys.argv[1]):
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    children, start = [], time.monotonic()
    for rank in range(size):
        child = os.fork()
        if child == 0:
            code = 1
            try:
                work(rank, size, port, commands)
                code = 0
            except SystemExit as stop:
                code = stop.code
            except BaseException:
                traceback.print_exc()
            sys.stderr.flush()
            os._exit(code)
        children.append(child)
    codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
    print("exit codes:", size, *codes, f"after {time.monotonic() - start:.0f} s", flush=True)
"""
FLAGS = (
    "--model.depth 2 --model.width 32 --model.heads 2 --train.batch 32 --train.precision fp32 --train.warmup 0 "
    "--train.cooldown 0 --sample-images 8 --sample.steps 2 --train.images 320 --train.log 80 --train.checkpoint 160 "
    "--train.samples 320"
)
HALF = ("--train.images", 160)
CLIP = ("--train.max-grad-norm", 0.05, *HALF)
FSDP = ("--train.parallel", "fsdp")


def losses(folder: Path, name: str = "loss") -> list[float]:
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [row[name] for row in rows if name in row]


def train(out: Path, *more: object) -> list[str]:
    return ["train", "digits", *FLAGS.split(), "--out", str(out), *map(str, more)]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, ditlab) -> Path:
    """Runs on one process, on four with a copy each and with a shard each, and halves of such runs."""
    folder = tmp_path_factory.mktemp("runs")
    for command in (train(folder / "alone"), train(folder / "clip", *CLIP), train(folder / "free", *HALF)):
        ended = ditlab(*command)
        assert ended.code == 0, ended
    archive = ("--out", folder / "four.npz", "--no-filmstrip")
    four = [
        train(folder / "ddp", "--train.monitor-blocks"),
        train(folder / "fsdp", *FSDP, "--train.monitor-blocks"),
        train(folder / "parts", "--train.microbatch", 3),
        train(folder / "recompute-fsdp", *FSDP, "--train.activation-checkpointing", "--train.microbatch", 3),
        train(folder / "hybrid", *FSDP, "--train.shard-size", 2, "--train.no-reshard-after-forward"),
        train(folder / "ddp-to-1", *HALF),
        train(folder / "fsdp-to-1", *HALF, *FSDP),
        train(folder / "fsdp-to-2", *HALF, *FSDP),
        ["sample", str(folder / "alone"), "--count", "11", "--batch", "2", *map(str, archive)],
    ]
    compiled = (*CLIP, "--train.compile", "on")
    two = [
        train(folder / "fsdp-to-2", *FSDP),
        train(folder / "compiled-ddp", *compiled),
        train(folder / "compiled-fsdp", *compiled, *FSDP),
    ]
    three = [train(folder / "refused")]
    driver = folder / "driver.py"
    driver.write_text(DRIVER)
    groups = json.dumps([(4, four), (2, two), (3, three)])
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "ignore"}
    ended = subprocess.run(
        [sys.executable, str(driver), groups], check=False, capture_output=True, text=True, timeout=280, env=environment,
        cwd=folder,
    )  # fmt: skip
    assert ended.returncode == 0, ended.stderr
    (folder / "out").write_text(ended.stdout)
    (folder / "err").write_text(ended.stderr)
    assert "exit codes: 4 0 0 0 0" in ended.stdout, ended.stderr
    assert "exit codes: 2 0 0" in ended.stdout, ended.stderr
    assert ended.stdout.count("11 images") == 1
    assert ended.stdout.count("resumed from the checkpoint at 160 of 320 images") == 1  # fsdp-to-2
    for name in ("ddp-to-1", "fsdp-to-1"):
        resumed = ditlab(*train(folder / name))
        assert "resumed from the checkpoint at 160 of 320 images" in resumed.out, resumed
    return folder


@pytest.mark.parametrize(
    "name", ["ddp", "fsdp", "parts", "recompute-fsdp", "hybrid", "ddp-to-1", "fsdp-to-1", "fsdp-to-2"]
)
def test_any_number_of_processes_and_any_change_of_it_gives_the_same_run_to_float_order(runs: Path, name: str):
    expected = losses(runs / "alone")
    assert len(expected) == 4
    np.testing.assert_allclose(losses(runs / name), expected, rtol=2e-6)
    (held_out,) = losses(runs / "alone", "held_out_loss")  # at the end only; a run in two halves has one for each
    measured = losses(runs / name, "held_out_loss")
    assert len(measured) == (2 if "-to-" in name else 1)
    np.testing.assert_allclose(measured[-1], held_out, rtol=1e-5)
    weights, others = load_file(runs / "alone" / "model.safetensors"), load_file(runs / name / "model.safetensors")
    assert weights.keys() == others.keys()
    for key, value in weights.items():
        if key.endswith("qkv.bias"):  # keys' biases do not change attention: AdamW makes steps of rounding errors there
            value[32:64] = others[key][32:64]
        np.testing.assert_allclose(others[key], value, rtol=1e-3, atol=2e-4, err_msg=key)


@pytest.mark.parametrize("name", ["ddp", "fsdp"])
def test_compiled_blocks_and_clipped_gradients_go_with_many_processes(runs: Path, name: str):
    """What a GPU does by default, on CPUs: the same losses as one process that compiles nothing."""
    expected = losses(runs / "clip")
    assert not np.allclose(losses(runs / "free"), expected, rtol=1e-4)  # gradients were longer than the clip
    np.testing.assert_allclose(losses(runs / f"compiled-{name}"), expected, rtol=5e-6)


def test_a_block_is_one_graph_under_ddp(runs: Path):
    """Dynamo's own DDP optimiser would cut it at the borders of buckets."""
    (graphs,) = re.findall(r"(\d+) graphs: .*compiled-ddp", (runs / "out").read_text())
    assert graphs == "1"


def test_blocks_are_monitored_alike_in_copies_and_shards(runs: Path):
    for name in ("activation_rms", "gradient_rms"):
        copies, shards = (np.array(losses(runs / run, name)) for run in ("ddp", "fsdp"))
        assert copies.shape == (4, 2)
        assert (copies > 0).all()
        np.testing.assert_allclose(copies, shards, rtol=1e-4)
    assert not losses(runs / "parts", "activation_rms")


def test_samples_do_not_depend_on_the_number_of_processes(runs: Path, ditlab):
    ended = ditlab("sample", runs / "alone", "--count", 11, "--batch", 2, "--out", runs / "one.npz", "--no-filmstrip")
    assert ended.code == 0, ended
    one, four = np.load(runs / "one.npz"), np.load(runs / "four.npz")
    assert one["arr_0"].shape == (11, 8, 8, 1)
    assert np.array_equal(one["arr_0"], four["arr_0"])
    assert np.array_equal(one["arr_1"], four["arr_1"])


def test_each_process_keeps_a_shard_only(runs: Path):
    sizes = [path.stat().st_size for path in (runs / "fsdp" / "checkpoints" / "000000000320").glob("*.distcp")]
    assert len(sizes) == 4
    assert max(sizes) < 2 * min(sizes)


def test_a_batch_that_does_not_divide_is_refused_by_every_process(runs: Path):
    assert "exit codes: 3 2 2 2" in (runs / "out").read_text()
    assert "a batch of 32 does not divide among 3 processes; nearest: 30 or 33" in (runs / "err").read_text()
    assert not (runs / "refused").exists()
