from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from ditlab.errors import UserError
from ditlab.train import TrainConfig
from ditlab.train.ema import EMA

CPU, GPU = torch.device("cpu"), torch.device("cuda")


def test_the_rate_rises_stands_and_falls():
    config = TrainConfig(images=100 * 8, batch=8, lr=0.5, warmup=0.1, cooldown=0.2)
    rates = [config.lr_at(step) for step in range(100)]
    assert rates[0] == pytest.approx(0.05)
    assert rates[4] == pytest.approx(0.25)
    assert rates[9:81] == pytest.approx([0.5] * 72)
    assert rates[90] == pytest.approx(0.25)
    assert rates[99] == pytest.approx(0.5 / 20)


def test_without_warmup_and_cooldown_the_rate_is_the_rate():
    config = TrainConfig(images=80, batch=8, lr=0.5)
    assert {config.lr_at(step) for step in range(10)} == {0.5}


@given(
    steps=st.integers(1, 500),
    warmup=st.floats(0, 1),
    share=st.floats(0, 1),
    rate=st.floats(1e-6, 0.9),
)
def test_every_step_has_a_rate_above_zero_and_at_most_the_rate(steps: int, warmup: float, share: float, rate: float):
    config = TrainConfig(images=steps, batch=1, lr=rate, warmup=warmup, cooldown=(1 - warmup) * share)
    config.check()
    assert all(0 < config.lr_at(step) <= rate for step in range(steps))


def test_images_beyond_the_last_whole_batch_are_not_trained_on():
    assert TrainConfig(images=100, batch=32).steps == 3


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"images": -1}, "--train.images -1"),
        ({"batch": -1}, "--train.batch -1"),
        ({"log": 0}, "--train.log 0"),
        ({"checkpoint": 0}, "--train.checkpoint 0"),
        ({"samples": 0}, "--train.samples 0"),
        ({"keep_checkpoints": 0}, "--train.keep-checkpoints 0"),
        ({"lr": 1.5}, "--train.lr 1.5"),
        ({"lr": float("nan")}, "--train.lr nan"),
        ({"beta2": 1.0}, "--train.beta2 1.0"),
        ({"ema": -0.1}, "--train.ema -0.1"),
        ({"weight_decay": 2.0}, "--train.weight-decay 2.0"),
        ({"warmup": 0.6, "cooldown": 0.6}, "--train.warmup 0.6 and --train.cooldown 0.6"),
        ({"warmup": -0.1}, "--train.warmup -0.1"),
        ({"images": 100}, "--train.images 100 is less than one batch of 256"),
    ],
)
def test_values_that_make_no_sense_are_named_with_their_flag(change: dict, words: str):
    with pytest.raises(UserError) as caught:
        replace(TrainConfig(), **change).check()
    assert words in str(caught.value)
    with pytest.raises(UserError, match="--autoencoder-train"):
        replace(TrainConfig(), **change).check("autoencoder-train")


def test_precision_is_the_machines_or_as_told(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("ditlab.train.config.cpu_has_bf16", lambda: False)
    assert TrainConfig(precision="bf16").precision_on(CPU) == "fp32"
    assert TrainConfig(precision="bf16").precision_on(GPU) == "bf16"
    monkeypatch.setattr("ditlab.train.config.cpu_has_bf16", lambda: True)
    assert TrainConfig().precision_on(CPU) == "fp32"
    assert TrainConfig().precision_on(GPU) == "bf16"
    assert TrainConfig(precision="fp32").precision_on(GPU) == "fp32"
    layer, x = nn.Linear(4, 4), torch.ones(2, 4)
    with TrainConfig(precision="bf16").autocast(CPU):
        assert layer(x).dtype == torch.bfloat16
    with TrainConfig().autocast(CPU):
        assert layer(x).dtype == torch.float32


def test_the_average_follows_the_weights_as_a_direct_float64_loop_does():
    torch.manual_seed(0)
    network = nn.Linear(5, 4)
    average = EMA(network, 0.95)
    direct = {name: value.double().clone() for name, value in network.state_dict().items()}
    for step in range(300):
        with torch.no_grad():
            for parameter in network.parameters():
                parameter.add_(torch.randn_like(parameter) * 0.1)
        average.update(step)
        decay = min(0.95, (1 + step) / (10 + step))
        for name, value in network.state_dict().items():
            direct[name] = decay * direct[name] + (1 - decay) * value.double()
    for name, value in average.module.state_dict().items():
        torch.testing.assert_close(value.double(), direct[name], rtol=0, atol=2e-6)
        assert not torch.equal(value, network.state_dict()[name])


def test_the_average_is_a_module_apart_and_asks_for_no_gradients():
    network = nn.Sequential(nn.Linear(2, 2), nn.Dropout())
    average = EMA(network, 0.9)
    assert not average.module.training
    assert not any(parameter.requires_grad for parameter in average.module.parameters())
    assert all(parameter.requires_grad for parameter in network.parameters())
    before = average.module[0].weight.clone()  # type: ignore[index]
    with torch.no_grad():
        network[0].weight.fill_(7.0)  # type: ignore[operator]
    assert torch.equal(average.module[0].weight, before)  # type: ignore[index]


def test_a_constant_decay_is_the_papers():
    network = nn.Linear(2, 2)
    warm, constant = EMA(network, 0.9999), EMA(network, 0.9999, warmup=False)
    assert [warm.decay_at(step) for step in (0, 10, 10**6)] == [0.1, 0.55, 0.9999]
    assert {constant.decay_at(step) for step in (0, 10, 10**6)} == {0.9999}
    before = {name: value.double().clone() for name, value in constant.module.state_dict().items()}
    with torch.no_grad():
        network.weight.add_(1.0)
    constant.update(0)
    after = constant.module.state_dict()["weight"].double()
    torch.testing.assert_close(after, before["weight"] + 1e-4, rtol=0, atol=1e-7)


def test_tf32_is_set_for_the_run_only():
    assert torch.get_float32_matmul_precision() == "highest"
    with TrainConfig(precision="tf32").matmul_precision(CPU):
        assert torch.get_float32_matmul_precision() == "high"
        assert torch.backends.cudnn.allow_tf32
    assert torch.get_float32_matmul_precision() == "highest"
    torch.set_float32_matmul_precision("high")
    try:
        with TrainConfig(precision="fp32").matmul_precision(CPU):
            assert torch.get_float32_matmul_precision() == "highest"
        assert torch.get_float32_matmul_precision() == "high"
    finally:
        torch.set_float32_matmul_precision("highest")
    with TrainConfig(precision="tf32").autocast(CPU):
        assert nn.Linear(4, 4)(torch.ones(2, 4)).dtype == torch.float32


def test_what_is_due_after_a_step():
    config = TrainConfig(images=160, batch=16, log=32, samples=64, checkpoint=80)
    due = {step: config.due(step) for step in range(1, 11)}
    assert [step for step in due if "log" in due[step]] == [2, 4, 6, 8, 10]
    assert [step for step in due if "samples" in due[step]] == [4, 8, 10]
    assert [step for step in due if "checkpoint" in due[step]] == [5, 10]


def test_a_shard_size_divides_the_processes():
    TrainConfig(shard_size=2).check_processes(4)
    with pytest.raises(UserError, match=r"--train\.shard-size 3 must divide the number of processes, 4"):
        TrainConfig(shard_size=3).check_processes(4)
