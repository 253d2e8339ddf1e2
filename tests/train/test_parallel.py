"""The same run on one process and on several, which talk through gloo."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

ROOT = Path(__file__).parent.parent.parent
# Runs commands one after another in every process, so that torch is imported once.
DRIVER = """
import json, sys
from ditlab.cli.main import main
from ditlab.runtime.distributed import leave
for arguments in json.loads(sys.argv[1]):
    main(arguments)
leave()
"""
FLAGS = (
    "--model.depth 2 --model.width 32 --model.heads 2 --train.batch 32 --train.precision fp32 --train.warmup 0 "
    "--train.cooldown 0 --sample-images 8 --sample.steps 2 --train.images 640 --train.log 160 --train.checkpoint 320 "
    "--train.samples 640"
)


def together(count: int, commands: list[list[object]], folder: Path) -> subprocess.CompletedProcess[str]:
    """Run commands in ``count`` processes that torchrun starts."""
    driver = folder / "driver.py"
    driver.write_text(DRIVER)
    words = json.dumps([[str(word) for word in command] for command in commands])
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "ignore"}
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(count)]
    return subprocess.run(
        [*launcher, str(driver), words], check=False, capture_output=True, text=True, timeout=200,
        env=environment, cwd=folder,
    )  # fmt: skip


def losses(folder: Path) -> list[float]:
    return [json.loads(line)["loss"] for line in (folder / "metrics.jsonl").read_text().splitlines()]


def train(out: Path, *more: object) -> list[object]:
    return ["train", "digits", *FLAGS.split(), "--out", out, *more]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs on one process, on four with a copy each and with a shard each, and halves of such runs."""
    folder = tmp_path_factory.mktemp("runs")
    half = ("--train.images", 320)
    alone = together(1, [train(folder / "alone")], folder)
    assert alone.returncode == 0, alone.stderr
    commands = [
        train(folder / "ddp"),
        train(folder / "fsdp", "--train.parallel", "fsdp"),
        train(folder / "parts", "--train.microbatch", 3),
        train(
            folder / "recompute-fsdp",
            "--train.parallel",
            "fsdp",
            "--train.activation-checkpointing",
            "--train.microbatch",
            3,
        ),
        train(folder / "ddp-to-1", *half),
        train(folder / "fsdp-to-1", *half, "--train.parallel", "fsdp"),
        train(folder / "fsdp-to-2", *half, "--train.parallel", "fsdp"),
        ["sample", folder / "alone", "--count", 11, "--batch", 2, "--out", folder / "four.npz", "--no-filmstrip"],
    ]
    four = together(4, commands, folder)
    assert four.returncode == 0, four.stderr
    assert four.stdout.count("11 images") == 1, four.stdout
    one = together(1, [train(folder / "ddp-to-1"), train(folder / "fsdp-to-1")], folder)
    assert one.stdout.count("going on from 320 of 640 images") == 2, one.stderr
    two = together(2, [train(folder / "fsdp-to-2", "--train.parallel", "fsdp")], folder)
    assert two.stdout.count("going on from 320 of 640 images") == 1, two.stderr
    return folder


@pytest.mark.parametrize("name", ["ddp", "fsdp", "parts", "recompute-fsdp", "ddp-to-1", "fsdp-to-1", "fsdp-to-2"])
def test_any_number_of_processes_and_any_change_of_it_gives_the_same_run_to_float_order(runs: Path, name: str):
    expected = losses(runs / "alone")
    assert len(expected) == 4
    np.testing.assert_allclose(losses(runs / name), expected, rtol=2e-6)
    weights, others = load_file(runs / "alone" / "model.safetensors"), load_file(runs / name / "model.safetensors")
    assert weights.keys() == others.keys()
    for key, value in weights.items():
        if key.endswith("qkv.bias"):  # keys' biases do not change attention: AdamW makes steps of rounding errors there
            value[32:64] = others[key][32:64]
        np.testing.assert_allclose(others[key], value, rtol=1e-3, atol=2e-4, err_msg=key)


def test_compiled_blocks_and_clipped_gradients_go_with_many_processes(tmp_path: Path):
    """What a GPU does by default, on CPUs: the same losses as one process that compiles nothing."""
    clip = ("--train.max-grad-norm", 0.05, "--train.images", 320)
    alone = together(1, [train(tmp_path / "alone", *clip), train(tmp_path / "free", "--train.images", 320)], tmp_path)
    assert alone.returncode == 0, alone.stderr
    compiled = (*clip, "--train.compile", "on")
    runs = [train(tmp_path / "ddp", *compiled), train(tmp_path / "fsdp", *compiled, "--train.parallel", "fsdp")]
    two = together(2, runs, tmp_path)
    assert two.returncode == 0, two.stderr
    expected = losses(tmp_path / "alone")
    assert not np.allclose(losses(tmp_path / "free"), expected, rtol=1e-4)  # gradients were longer than the clip
    for name in ("ddp", "fsdp"):
        np.testing.assert_allclose(losses(tmp_path / name), expected, rtol=5e-6)


def test_samples_do_not_depend_on_the_number_of_processes(runs: Path, ditlab):
    ended = ditlab("sample", runs / "alone", "--count", 11, "--batch", 2, "--out", runs / "one.npz", "--no-filmstrip")
    assert ended.code == 0, ended
    one, four = np.load(runs / "one.npz"), np.load(runs / "four.npz")
    assert one["arr_0"].shape == (11, 8, 8, 1)
    assert np.array_equal(one["arr_0"], four["arr_0"])
    assert np.array_equal(one["arr_1"], four["arr_1"])


def test_each_process_keeps_a_shard_only(runs: Path):
    sizes = [path.stat().st_size for path in (runs / "fsdp" / "checkpoints" / "000000000640").glob("*.distcp")]
    assert len(sizes) == 4
    assert max(sizes) < 2 * min(sizes)


def test_a_batch_that_does_not_divide_is_refused_by_every_process(tmp_path: Path):
    ended = together(3, [train(tmp_path / "run")], tmp_path)
    assert ended.returncode != 0
    assert "a batch of 32 does not divide among 3 processes; nearest: 30 or 33" in ended.stderr
    assert not (tmp_path / "run").exists()
