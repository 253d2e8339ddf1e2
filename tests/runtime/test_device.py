"""Freed memory is there for the next step."""

import platform
import subprocess
import sys

import pytest

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
