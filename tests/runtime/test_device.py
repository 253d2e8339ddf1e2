"""The device that a name selects; freed memory is there for the next step."""

import platform
import subprocess
import sys

import pytest
import torch

from ditlab.runtime.device import select_device
from ditlab.runtime.distributed import Processes

FAULTS = """
import resource, torch
from ditlab.runtime.device import keep_memory
if {keep}:
    keep_memory()
for step in range(16):
    if step == 8:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    maps = [torch.ones(10_000_000) for _ in range(4)]  # 160 MB
    del maps
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other C libraries cannot be told")
def test_maps_of_a_batch_take_the_pages_of_the_last_one():
    counted = {}
    for keep in (False, True):
        done = subprocess.run(
            [sys.executable, "-c", FAULTS.format(keep=keep)], capture_output=True, text=True, check=True
        )
        counted[keep] = int(done.stdout)
    assert counted[True] * 20 < counted[False]


@pytest.fixture
def two_gpus(monkeypatch: pytest.MonkeyPatch) -> list[torch.device]:
    """What a machine with two GPUs says of them; the devices that were made current."""
    current: list[torch.device] = []
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "set_device", current.append)
    return current


@pytest.mark.parametrize(
    ("name", "device"), [("", "cuda:1"), ("cuda", "cuda:1"), ("cuda:0", "cuda:0"), ("cuda:1", "cuda:1"), ("cpu", "cpu")]
)
def test_a_device_is_selected_by_name(name: str, device: str, two_gpus: list[torch.device]):
    found = select_device(name, Processes(local=1))
    assert found == torch.device(device)
    assert two_gpus == [found] * (name.startswith("cuda"))


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("cuda:2", "--device cuda:2 is not available here; found: cpu, cuda:0, cuda:1"),
        ("mps", "--device mps is not available here; found: cpu, cuda:0, cuda:1"),
        ("gpu", "did you mean 'cpu'? (known: cpu, cuda, cuda:1, mps)"),
        ("cuda:one", "'cuda:one' is not a device; did you mean 'cuda:1'?"),
        ("cpu:0", "'cpu:0' is not a device"),
    ],
)
def test_a_device_that_is_absent_is_one_line(name: str, words: str, two_gpus, refuses):
    refuses(lambda: select_device(name), words)


def test_processes_share_no_device(two_gpus, refuses):
    refuses(
        lambda: select_device("cuda:1", Processes(size=2)), "one device, and there are 2 processes", "--device cuda"
    )
    assert select_device("cuda", Processes(rank=1, size=2, local=1)) == torch.device("cuda:1")


@pytest.mark.skipif(torch.cuda.is_available(), reason="the machine has a GPU")
def test_without_a_gpu_cuda_is_one_line_and_nothing_is_the_cpu(refuses):
    refuses(lambda: select_device("cuda"), "--device cuda is not available here; found: cpu")
    assert select_device() == torch.device("cpu")
