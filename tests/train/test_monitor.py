"""The held-out loss and the RMS by block, against plain loops over the same images."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from ditlab.runtime.distributed import ALONE
from ditlab.train import DiffusionTask, HeldOutLoss, TrainConfig, read_metrics, train
from ditlab.train.callbacks import Event
from ditlab.train.ema import EMA
from ditlab.train.monitor import BlockMonitor

CPU = torch.device("cpu")
CONFIG = TrainConfig(images=64, batch=16, lr=3e-3, log=16, checkpoint=64, samples=64, precision="fp32", microbatch=16)
MakeTask = Callable[..., DiffusionTask]


def event(task: DiffusionTask, config: TrainConfig = CONFIG, images: int = 64, last: bool = True) -> Event:
    return Event(images, 64, last, Path(), task, EMA(task.module, 0.9), config, ALONE, CPU)


@pytest.mark.parametrize("learned_variance", [True, False])
def test_held_out_loss_is_the_mean_over_eight_times_and_always_the_same(make_task: MakeTask, learned_variance: bool):
    task = make_task(learned_variance)
    callback = HeldOutLoss(task, 24)
    draws = callback.draws
    expected = (torch.arange(24) % 8 + 0.5).double() / 8
    assert (draws["t"].double() - expected).abs().max() < 1 / 1000
    assert not draws["drop"].any()
    with torch.no_grad():
        batch = task.read(np.arange(24), np.zeros(24, bool), {})
        direct = task.loss(task.module, batch, draws).double().mean()
    first, again = (callback.on_log(event(task)) for _ in range(2))
    assert first == again
    assert first["held_out_loss"] == pytest.approx(float(direct), rel=1e-6)


def test_held_out_loss_is_of_the_average_and_costs_an_image_in_32(make_task: MakeTask):
    task = make_task()
    callback, happening = HeldOutLoss(task, 64), event(task)
    before = callback.on_log(happening)
    with torch.no_grad():
        for parameter in task.module.parameters():
            parameter.zero_()
    assert callback.on_log(happening) == before  # the average still has the old weights
    due = [images for images in range(16, 8192, 16) if callback.on_log(event(task, images=images, last=False))]
    assert due == [2048, 4096, 6144]
    assert callback.on_log(event(task, images=32, last=False)) == {}


def test_training_writes_held_out_loss_and_block_rms_without_changing_the_run(make_task: MakeTask, tmp_path: Path):
    def run(folder: Path, monitored: bool) -> tuple[list[dict], dict]:
        task, config = make_task(), replace(CONFIG, monitor_blocks=monitored)
        callbacks = [HeldOutLoss(task)] if monitored else []
        train(
            task, config, seed=0, flip=False, folder=folder, device=CPU, log=print, title="run", callbacks=callbacks
        )  # fmt: skip
        return read_metrics(folder), task.module.state_dict()

    (rows, weights), (plain, others) = run(tmp_path / "monitored", True), run(tmp_path / "plain", False)
    assert [row["loss"] for row in rows] == [row["loss"] for row in plain]
    assert all(torch.equal(weights[name], others[name]) for name in weights)
    assert ["held_out_loss" in row for row in rows] == [False, False, False, True]
    assert all(len(row["activation_rms"]) == len(row["gradient_rms"]) == 3 for row in rows)
    assert "activation_rms" not in plain[0]


@pytest.mark.parametrize("recompute", [False, True])
def test_block_rms_is_that_of_outputs_and_their_gradients(make_task: MakeTask, recompute: bool):
    task = make_task()
    if recompute:
        task.activation_checkpointing()
    row = BlockMonitor().on_log(event(task))
    task.activation_checkpointing(False)
    outputs: list[torch.Tensor] = []
    for part in task.parts(task.module):
        part.register_forward_hook(lambda _, __, out: outputs.append(out if isinstance(out, torch.Tensor) else out[0]))
    inputs = task.read(np.arange(8), np.zeros(8, bool), {}), HeldOutLoss(task, 8).draws
    gradients = torch.autograd.grad(task.loss(task.module, *inputs).mean(), outputs)
    for name, tensors in (("activation_rms", outputs), ("gradient_rms", gradients)):
        expected = [float(each.detach().double().square().mean().sqrt()) for each in tensors]
        np.testing.assert_allclose(np.array(row[name], float), expected, rtol=1e-4)
    assert all(parameter.grad is None for parameter in task.module.parameters())


def test_the_block_that_diverges_is_the_first_without_a_number(make_task: MakeTask):
    task = make_task()
    with torch.no_grad():
        next(task.parts(task.module)[1].parameters()).fill_(torch.inf)
    row = BlockMonitor().on_log(event(task))
    assert [value is None for value in row["activation_rms"]] == [False, True, True]  # type: ignore[union-attr]
