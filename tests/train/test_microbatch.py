"""The stored choice of a microbatch. What fits is in test_ways.py."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from ditlab.runtime.distributed import ALONE, Processes
from ditlab.train import TrainConfig, train
from ditlab.train.microbatch import free_memory, memory_settings, stored_microbatch

CPU = torch.device("cpu")
FREE = TrainConfig(images=64, batch=16, log=16, checkpoint=64, samples=64, precision="fp32")


def test_a_stored_choice_is_used_by_the_same_settings_only():
    state = {"microbatch": [8, memory_settings(FREE, ALONE, CPU)]}
    assert stored_microbatch(state, FREE, ALONE, CPU) == 8
    assert stored_microbatch(state, replace(FREE, microbatch=4), ALONE, CPU) == 4
    assert stored_microbatch(None, FREE, ALONE, CPU) == stored_microbatch({}, FREE, ALONE, CPU) == 0
    for other in ({"precision": "tf32"}, {"activation_checkpointing": True}, {"compile": "on"}, {"parallel": "fsdp"}):
        assert stored_microbatch(state, replace(FREE, **other), ALONE, CPU) == 0, other  # type: ignore[arg-type]
    assert stored_microbatch(state, FREE, Processes(0, 2), CPU) == 0


def test_the_choice_is_kept_in_the_run_and_not_made_again(tmp_path: Path, make_task, monkeypatch: pytest.MonkeyPatch):
    def run(total: int) -> None:
        config = replace(FREE, images=total)
        train(make_task(), config, seed=0, flip=False, folder=tmp_path, device=CPU, log=print, title="run")

    monkeypatch.setattr("ditlab.train.trainer.largest_microbatch", lambda *_: 4)
    run(32)
    (path,) = (tmp_path / "checkpoints").glob("*/state.json")
    assert json.loads(path.read_text())["microbatch"][0] == 4
    monkeypatch.setattr("ditlab.train.trainer.largest_microbatch", lambda *_: pytest.fail("probed again"))
    run(64)


def test_free_memory_of_a_system_without_meminfo_is_all_of_it(monkeypatch: pytest.MonkeyPatch):
    linux = free_memory(torch.device("cpu"), ALONE)
    monkeypatch.setattr("ditlab.train.microbatch.MEMINFO", Path("nowhere"))
    whole = free_memory(torch.device("cpu"), ALONE)
    assert linux < whole < 1000 * linux
