"""The same run on one process and on several, connected by gloo."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from forked import together
from PIL import Image
from safetensors.numpy import load_file
from text_models import save_text_model

from ditlab.encoders import TextEncoderConfig, build_text_encoder, encode_texts, text_cache

ROOT = Path(__file__).parent.parent.parent
# Runs commands one after another in one process of several, and prints how many graphs each compiled.
COMMANDS = """
import json, sys, time
import torch
from ditlab.cli.main import main
from ditlab.runtime.distributed import leave
from ditlab.train import config, parallel, speed
config.cpu_has_bf16 = lambda: True  # also where it is emulated

parallel.BUCKET_MB = 0.005  # so that a block's gradients fill several buckets
speed.matrix_rate = lambda *_: 1e10  # not measured by every process of every run
for arguments in json.loads(sys.argv[1]):
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    began = time.monotonic()
    main(arguments)
    graphs = torch._dynamo.utils.counters["aot_autograd"]["total"]
    print(f"{graphs} graphs, {time.monotonic() - began:.0f} s: {' '.join(arguments)}", flush=True)
leave()
"""
FLAGS = (
    "--model.depth 2 --model.width 32 --model.heads 2 --train.batch 32 --train.precision fp32 --train.warmup 0 "
    "--train.cooldown 0 --sample-images 8 --sample.steps 2 --train.images 320 --train.log 80 --train.checkpoint 160 "
    "--train.samples 320"
)
HALF = ("--train.images", 160)
CLIP = ("--train.max-grad-norm", 0.05, *HALF)
FSDP = ("--train.parallel", "fsdp")
BF16 = ("--train.precision", "bf16")


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
        train(folder / "recompute-fsdp", *FSDP, "--train.activation-checkpointing", "--train.microbatch", 3),
        train(folder / "hybrid", *FSDP, "--train.shard-size", 2, "--train.no-reshard-after-forward"),
        train(folder / "ddp-to-1", *HALF, "--train.microbatch", 3),
        train(folder / "fsdp-to-2", *HALF, *FSDP),
        ["sample", str(folder / "alone"), "--count", "11", "--batch", "2", *map(str, archive)],
    ]
    compiled = (*CLIP, "--train.compile", "on", "--train.microbatch", 16)
    two = [
        train(folder / "fsdp-to-2", *FSDP),
        train(folder / "compiled-ddp", *compiled),
        train(folder / "compiled-fsdp", *compiled, *FSDP),
        train(folder / "rounded-ddp", *HALF, *BF16),
        train(folder / "rounded-fsdp", *HALF, *BF16, *FSDP),
    ]
    first = together(4, json.dumps(four), script=COMMANDS)
    assert first.returncode == 0, first.stderr
    assert first.stdout.count("11 images") == 1
    shutil.copytree(folder / "fsdp-to-2", folder / "fsdp-to-1")
    second = together(2, json.dumps(two), script=COMMANDS)
    assert second.returncode == 0, second.stderr
    assert second.stdout.count("resumed from the checkpoint at 160 of 320 images") == 1  # fsdp-to-2
    (folder / "out").write_text(first.stdout + second.stdout)
    for name in ("ddp-to-1", "fsdp-to-1"):
        resumed = ditlab(*train(folder / name))
        assert "resumed from the checkpoint at 160 of 320 images" in resumed.out, resumed
    return folder


@pytest.mark.parametrize("name", ["ddp", "fsdp", "recompute-fsdp", "hybrid", "ddp-to-1", "fsdp-to-1", "fsdp-to-2"])
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


def test_shards_in_bfloat16_round_what_copies_round(runs: Path):
    """Products are in bfloat16; embeddings of labels, say, in float32."""
    copies, shards = losses(runs / "rounded-ddp"), losses(runs / "rounded-fsdp")
    np.testing.assert_allclose(shards, copies, rtol=2e-6)
    assert not np.allclose(copies, losses(runs / "free"), rtol=1e-5)


def test_a_block_is_one_graph_under_ddp(runs: Path):
    """Dynamo's own DDP optimiser would cut it at the borders of buckets."""
    assert re.findall(r"(\d+) graphs, .*compiled-ddp", (runs / "out").read_text()) == ["1", "1"]


def test_blocks_are_monitored_alike_in_copies_and_shards(runs: Path):
    for name in ("activation_rms", "gradient_rms"):
        copies, shards = (np.array(losses(runs / run, name)) for run in ("ddp", "fsdp"))
        assert copies.shape == (4, 2)
        assert (copies > 0).all()
        np.testing.assert_allclose(copies, shards, rtol=1e-4)
    assert not losses(runs / "hybrid", "activation_rms")


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


def test_a_batch_that_does_not_divide_is_refused_by_every_process(tmp_path: Path):
    ended = together(3, *train(tmp_path / "refused"))
    assert ended.returncode == 2
    assert ended.stderr.count("a batch of 32 does not divide among 3 processes; nearest: 30 or 33") == 3
    assert not (tmp_path / "refused").exists()


SIGNALS = """
import sys
from ditlab.runtime.distributed import join, leave
from ditlab.train.stop import StopSignal

processes = join()
stop, seen = StopSignal(processes), []
for step in range(6):
    if step == 3 and processes.rank == 1:
        stop._receive()
    stop.poll(picture=step == 1 and processes.rank == 0)
    seen.append((stop.picture, stop.requested))
stop.close()
for picture, requested in seen:
    print(processes.rank, int(picture), int(requested))
leave()
"""


def test_all_processes_learn_of_sigterm_and_of_a_preview_at_the_same_step():
    ended = together(2, script=SIGNALS)
    assert ended.returncode == 0, ended
    expected = ["0 0", "0 0", "1 0", "0 0", "0 1", "0 1"]
    assert ended.stdout.splitlines() == [f"{rank} {line}" for rank in (0, 1) for line in expected]


FEW_CAPTIONS = """
from ditlab.encoders import text_cache
text_cache.SHARD = 4
"""


def test_frozen_weights_and_cached_captions_go_with_many_processes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A table of embeddings that is not trained, and shards of captions of a frozen encoder shared out."""
    model, data = save_text_model(tmp_path / "bert", "bert"), tmp_path / "data"
    texts = ["a red image" + " of a circle" * number for number in range(16)]
    data.mkdir()
    for number, text in enumerate(texts):
        Image.new("RGB", (8, 8), (16 * number, 0, 0)).save(data / f"{number:02}.png")
        (data / f"{number:02}.txt").write_text(text)

    def command(out: str, *more: object) -> list[str]:
        few = (
            "--train.images",
            32,
            "--train.checkpoint",
            32,
            "--model.patch",
            8,
            "--data.size",
            8,
            "--train.batch",
            16,
        )
        arguments = ["folder", "--data.path", data, *FLAGS.split(), *few, "--out", tmp_path / out, *more]
        return ["train", *map(str, arguments)]

    table = ("--text.kind", "tokens", "--text.frozen")
    commands = [
        command("ddp", *table),
        command("fsdp", *table, *FSDP),
        command("encoder", "--text.kind", "transformers", "--text.path", model),
    ]
    ended = together(2, json.dumps(commands), script=FEW_CAPTIONS + COMMANDS)
    assert ended.returncode == 0, ended.stderr
    name = "network.condition_embedding.text.table.weight"
    tables = [load_file(tmp_path / run / "model.safetensors")[name] for run in ("ddp", "fsdp")]
    assert np.array_equal(tables[0], tables[1])
    folder = tmp_path / "encoder-captions"
    written = {path: path.stat().st_mtime_ns for path in folder.glob("*.npy")}
    assert len(written) == 2 * 4
    monkeypatch.setattr(text_cache, "SHARD", 4)
    encoder = build_text_encoder(TextEncoderConfig("transformers", path=str(model)), texts)
    assert encoder is not None
    cache = encode_texts(texts, encoder, folder)
    assert {path: path.stat().st_mtime_ns for path in written} == written
    value, mask = encoder.encode(texts)
    np.testing.assert_allclose(cache.read(np.arange(16))[mask], value[mask], atol=1e-3, rtol=1e-3)
