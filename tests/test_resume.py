"""A run that is really killed, at any moment, and started again by the same command ends as one never killed."""

from __future__ import annotations

import json
import random
import signal
import time
from pathlib import Path

import pytest
import torch
import torch.distributed.checkpoint as dcp
from torch import Tensor

from ditlab.train import read_metrics
from ditlab.train.checkpoint import existing

pytestmark = pytest.mark.filterwarnings("ignore:torch.distributed is disabled")  # which dcp.load is told, and says

# Lets children that share its imports run a command, and kills each of them once: before or after its n-th rename, which
# is when files and folders get their final names, or after some time. The last one runs to the end. With a limit on the
# size of files, one run fails as on a full disk.
DRIVER = """
import json, os, random, resource, signal, sys, time
import matplotlib.pyplot, sklearn.datasets
import ditlab.recipes
from ditlab.cli.main import main
from ditlab.train import checkpoint

def die_at(call, left, before):
    def patched(*arguments, **more):
        left[0] -= 1
        if left[0] == 0 and before:
            os.kill(os.getpid(), signal.SIGKILL)
        result = call(*arguments, **more)
        if left[0] == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return result
    return patched

def limit_after_first(save, limit):
    def patched(*arguments, **more):
        path = save(*arguments, **more)
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
        return path
    return patched

def attempt(mode, value, arguments):
    child = os.fork()
    if child == 0:
        sys.stdout = open(os.devnull, "w")
        if mode == "rename":
            left = [value[0]]
            os.replace, os.rename = (die_at(call, left, value[1]) for call in (os.replace, os.rename))
        if mode == "full":
            writer = checkpoint.Checkpoints
            writer._write = limit_after_first(writer._write, value)
        code = 0
        try:
            main(arguments)
        except SystemExit as stop:
            code = stop.code
        except BaseException:
            import traceback
            traceback.print_exc()
            code = 1
        sys.stderr.flush()
        os._exit(code)
    if mode == "time":
        time.sleep(value)
        os.kill(child, signal.SIGKILL)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])

chance, codes = random.Random(int(sys.argv[1])), []
for mode, value, arguments in json.loads(sys.argv[2]):
    if mode != "kills":
        codes.append(attempt(mode, value, arguments))
        continue
    for turn in range(value):
        if turn % 2:
            codes.append(attempt("time", chance.uniform(0.02, 1.0), arguments))
        else:
            codes.append(attempt("rename", (chance.randint(1, 11), chance.random() < 0.5), arguments))
    codes.append(attempt("", None, arguments))
print(json.dumps(codes))
"""


def tensors_of(checkpoint: Path) -> dict[str, Tensor]:
    """Everything a checkpoint holds."""
    reader = dcp.FileSystemReader(checkpoint)
    stored = reader.read_metadata().state_dict_metadata
    tensors = {name: torch.empty(item.size, dtype=item.properties.dtype) for name, item in stored.items()}  # type: ignore[union-attr]
    dcp.load(tensors, storage_reader=reader, no_dist=True)
    return tensors


@pytest.fixture
def same_end(metrics, tree):
    """Two run folders hold the same to the bit, but for what the clock says."""

    def check(one: Path, other: Path, model: str) -> None:
        assert metrics(one) == metrics(other)
        assert [path.name for path in existing(one / "checkpoints")] == [
            path.name for path in existing(other / "checkpoints")
        ]
        for first, second in zip(existing(one / "checkpoints"), existing(other / "checkpoints"), strict=True):
            assert (first / "state.json").read_text() == (second / "state.json").read_text()
            tensors, others = tensors_of(first), tensors_of(second)
            kinds = {name.split(".")[0] for name in tensors}
            assert kinds == {"weights", "average", "optimiser"}
            assert tensors.keys() == others.keys()
            for name, tensor in tensors.items():
                assert torch.equal(tensor, others[name]), name
        assert tree(one / "samples") == tree(other / "samples")
        assert (one / model).read_bytes() == (other / model).read_bytes()
        assert not list(one.rglob("*.part"))

    return check


FLAGS = (
    "--model.depth 2 --model.width 32 --model.heads 2 --train.batch 32 --train.precision fp32 --train.images 11200 "
    "--train.log 320 --train.checkpoint 640 --train.samples 5600 --sample-images 4 --sample.steps 2"
)


def wait_until(what, process, seconds: float = 60) -> bool:
    """Wait for something to come true; False where the process ended first."""
    end = time.monotonic() + seconds
    while not what():
        if process.poll() is not None:
            return False
        assert time.monotonic() < end, "nothing happened"
        time.sleep(0.0005)
    return True


def test_digits_killed_at_random_moments_and_in_the_middle_of_checkpoints(tmp_path: Path, process, same_end):
    chance, killed, command = random.Random(5), [], ["train", "digits", *FLAGS.split(), "--out"]
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    unbroken = process(*command, whole)
    checkpoints = parts / "checkpoints"
    for kind in ("random", "writing", "random", "writing", "interrupt"):
        start = max([int(path.name) for path in existing(checkpoints)], default=0)  # where this one will go on from
        run = process(*command, parts)
        began = wait_until(lambda start=start: any(row["images"] > start for row in read_metrics(parts)), run)
        if began and kind == "writing":
            wait_until(lambda: any(checkpoints.glob(".*.part")), run)
        elif began:
            time.sleep(chance.uniform(0, 0.5))
        run.send_signal(signal.SIGINT if kind == "interrupt" else signal.SIGKILL)
        _, err = run.communicate(timeout=60)
        if kind == "interrupt" and run.returncode != 0:
            assert run.returncode == 130
            assert err == "ditlab: stopped; the same command resumes from the last checkpoint\n"
        killed.append(run.returncode)
    assert killed.count(-signal.SIGKILL) >= 3, killed
    last = process(*command, parts)
    out, err = last.communicate(timeout=120)
    assert (last.returncode, err) == (0, ""), err
    assert "going on from" in out
    assert unbroken.communicate(timeout=120)[1] == ""
    same_end(parts, whole, "model.safetensors")


def test_autoencoder_latents_and_network_killed_between_any_two_renames(
    tmp_path: Path, process, same_end, tree, kl_recipe: Path
):
    command = ["train", str(kl_recipe), "--out"]
    whole, parts = [*command, str(tmp_path / "whole")], [*command, str(tmp_path / "parts")]
    jobs = [["", None, whole], ["kills", 14, parts]]
    driver = process("7", json.dumps(jobs), script="import diffusers.models\n" + DRIVER)
    out, err = driver.communicate(timeout=200)
    assert driver.returncode == 0, err
    assert err == ""
    codes = json.loads(out)
    assert codes[0] == codes[-1] == 0
    assert codes.count(-signal.SIGKILL) >= 8, codes
    same_end(tmp_path / "parts-autoencoder", tmp_path / "whole-autoencoder", "autoencoder.safetensors")
    same_end(tmp_path / "parts", tmp_path / "whole", "model.safetensors")
    latents, others = tree(tmp_path / "parts-latents"), tree(tmp_path / "whole-latents")
    assert {name: content for name, content in latents.items() if not name.endswith(".part")} == others


def test_a_full_disk_is_one_line_earlier_checkpoints_stand_and_with_room_the_run_goes_on(
    tmp_path: Path, process, same_end, tiny: list[str]
):
    command = ["train", "digits", *tiny, "--train.checkpoint", "160", "--out"]
    whole, parts = [*command, str(tmp_path / "whole")], [*command, str(tmp_path / "parts")]
    size = 300_000  # between model.safetensors, which still fits, and a checkpoint, which does not
    driver = process("0", json.dumps([["", None, whole], ["full", size, parts]]), script=DRIVER)
    out, err = driver.communicate(timeout=200)
    assert json.loads(out) == [0, 2], err
    assert err.startswith(f"ditlab: cannot write {tmp_path / 'parts' / 'checkpoints' / '000000000320'}: File too large")
    assert "make room" in err
    assert err.count("\n") == 1
    assert [path.name for path in (tmp_path / "parts" / "checkpoints").iterdir()] == ["000000000160"]
    assert not list((tmp_path / "parts").rglob("*.part"))
    small = (tmp_path / "parts" / "model.safetensors").stat().st_size
    large = sum(path.stat().st_size for path in existing(tmp_path / "whole" / "checkpoints")[0].iterdir())
    assert small < size < large
    driver = process("0", json.dumps([["", None, parts]]), script=DRIVER)
    out, err = driver.communicate(timeout=200)
    assert (json.loads(out), err) == ([0], "")
    same_end(tmp_path / "parts", tmp_path / "whole", "model.safetensors")
