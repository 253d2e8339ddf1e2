"""Ways to compute the same run: compiled, in parts, computing again going back. The losses agree to float order."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from specs import image_spec
from torch import nn

from ditlab.data import DataConfig, open_data
from ditlab.diffusion import DiffusionConfig
from ditlab.encoders import Autoencoder, AutoencoderConfig, new_kl
from ditlab.errors import UserError
from ditlab.models import DiT, DiTConfig
from ditlab.runtime.distributed import ALONE
from ditlab.train import AutoencoderTask, DiffusionTask, TrainConfig, read_metrics, train
from ditlab.train.microbatch import largest_microbatch, saved_bytes
from ditlab.train.speed import matrix_rate

CPU = torch.device("cpu")
CONFIG = TrainConfig(
    images=16 * 10, batch=16, lr=3e-3, log=16, checkpoint=160, samples=160, precision="fp32", microbatch=16
)
BLOCKS = ("adaln-zero", "adaln", "cross-attention", "in-context")


def make_task(block: str = "adaln-zero", tokens: int = 4) -> DiffusionTask:
    images = open_data(DataConfig(source="digits", limit=64)).load()
    shape = image_spec(1, 8, 8, classes=10, learned_variance=True)
    network = DiT(DiTConfig(depth=2, width=16, heads=2, patch=8 // tokens, block=block), shape)  # type: ignore[arg-type]
    network.initialise(torch.Generator().manual_seed(1))
    with torch.no_grad():  # no gate is zero, so that every part has a gradient
        for parameter in network.parameters():
            parameter.add_(0.02 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(2)))
    diffusion, autoencoder = DiffusionConfig(), Autoencoder(1, 1, 1)
    return DiffusionTask(network, diffusion.build_loss(), autoencoder, images)


def losses(folder: Path, made: DiffusionTask | AutoencoderTask, **changes: object) -> np.ndarray:
    """The loss of each of ten steps."""
    from dataclasses import replace

    config = replace(CONFIG, **changes)  # type: ignore[arg-type]
    train(made, config, seed=0, flip=False, folder=folder, device=CPU, log=print, title="ways")
    return np.array([row["loss"] for row in read_metrics(folder)])


@pytest.mark.parametrize("block", BLOCKS)
def test_computing_again_going_back_gives_the_same_losses(tmp_path: Path, block: str):
    kept = losses(tmp_path / "kept", make_task(block))
    again = losses(tmp_path / "again", make_task(block), activation_checkpointing=True)
    assert len(kept) == 10
    np.testing.assert_allclose(again, kept, rtol=1e-6)


@pytest.mark.parametrize("part", [1, 6, 8])
def test_a_batch_in_parts_gives_the_same_losses(tmp_path: Path, part: int):
    np.testing.assert_allclose(
        losses(tmp_path / "parts", make_task(), microbatch=part), losses(tmp_path / "whole", make_task()), rtol=1e-5
    )


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")
def test_compiled_blocks_give_the_same_losses_and_are_compiled_once(tmp_path: Path):
    eager = losses(tmp_path / "eager", make_task())
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    made = make_task()
    compiled = losses(tmp_path / "compiled", made, compile="on")
    np.testing.assert_allclose(compiled, eager, rtol=1e-5)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1  # two blocks, one graph
    again = losses(tmp_path / "again", make_task(), compile="on", activation_checkpointing=True, microbatch=8)
    np.testing.assert_allclose(again, eager, rtol=1e-5)
    torch._dynamo.reset()


def test_where_there_is_no_compiler_one_line_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match=r"torch\.compile needs a compiler"):
        losses(tmp_path / "run", make_task(), compile="on")


def test_bfloat16_training_follows_float32_closely(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("ditlab.train.config.cpu_has_bf16", lambda: True)
    exact = losses(tmp_path / "fp32", make_task())
    made = make_task()
    rounded = losses(tmp_path / "bf16", made, precision="bf16")
    assert not np.array_equal(rounded, exact)
    np.testing.assert_allclose(rounded, exact, rtol=0.02)
    assert all(parameter.dtype == torch.float32 for parameter in made.module.parameters())


def test_an_autoencoder_has_nothing_to_compute_again(tmp_path: Path):
    images = open_data(DataConfig(source="digits", limit=32)).load()
    autoencoder = new_kl(AutoencoderConfig(kind="kl", latent_channels=2, widths=(4, 8)), 1, 0)
    made = AutoencoderTask(autoencoder, images, 1e-3)
    with pytest.raises(UserError, match="diffusion networks only"):
        losses(tmp_path, made, activation_checkpointing=True)


def test_recompute_keeps_less_for_the_backward_pass():
    made = make_task(tokens=8)
    kept = saved_bytes(made, CONFIG, CPU, 8)
    made.activation_checkpointing()
    assert saved_bytes(made, CONFIG, CPU, 8) < kept / 2


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore:The .grad attribute")  # torch's own, which it hides
def test_compiled_parts_keep_less_and_are_not_compiled_afterwards(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("ditlab.train.config.cpu_has_bf16", lambda: True)
    made, config = make_task(tokens=8), replace(CONFIG, compile="on", precision="bf16")
    eager = saved_bytes(made, replace(config, compile="off"), CPU, 8)
    assert 0.5 * eager < saved_bytes(made, config, CPU, 8) < 0.9 * eager
    assert saved_bytes(made, replace(config, compile="off"), CPU, 8) == eager


def test_what_is_kept_grows_with_the_images_and_decides_the_part(monkeypatch: pytest.MonkeyPatch):
    made = make_task(tokens=8)
    one, two, four = (saved_bytes(made, CONFIG, CPU, count) for count in (1, 2, 4))
    each = two - one
    assert abs(four - (one + 3 * each)) < 0.02 * four
    made.module.train()
    assert largest_microbatch(made, CONFIG, CPU, ALONE) == 16
    state = 16 * sum(parameter.numel() for parameter in made.module.parameters())
    for room, expected in ((5.5 * each, 4), (1.3 * each, 1), (16.5 * each, 16), (0.1 * each, 1)):
        monkeypatch.setattr("ditlab.train.microbatch.free_memory", lambda *_, room=room: state + room / 0.8)
        assert largest_microbatch(made, CONFIG, CPU, ALONE) == expected


def test_the_block_computed_again_counts_among_what_has_to_fit(monkeypatch: pytest.MonkeyPatch):
    made, config = make_task(tokens=8), replace(CONFIG, activation_checkpointing=True)
    whole = saved_bytes(made, CONFIG, CPU, 2) - saved_bytes(made, CONFIG, CPU, 1)
    made.activation_checkpointing()
    inputs = saved_bytes(made, config, CPU, 2) - saved_bytes(made, config, CPU, 1)
    each = inputs + (whole - inputs) / 2  # of two blocks alike one is there at a time
    state = 16 * sum(parameter.numel() for parameter in made.module.parameters())
    for images, expected in ((4.1, 4), (3.9, 2), (16.1, 16)):
        monkeypatch.setattr("ditlab.train.microbatch.free_memory", lambda *_, room=images: state + room * each / 0.8)
        assert largest_microbatch(made, config, CPU, ALONE) == expected
    assert saved_bytes(made, config, CPU, 2) - saved_bytes(made, config, CPU, 1) == inputs  # it is on again


def test_what_is_kept_is_what_autograd_holds():
    """Counted by hand for one layer: its input, and its output where the next operation squares it."""

    class Layer(DiffusionTask):
        def __init__(self) -> None:
            self.module, self.count = nn.Linear(32, 64), 8

        def read(self, indices, flips, draws):
            return {"x": torch.ones(len(indices), 32)}

        def draw(self, positions):
            return {}

        def loss(self, module, batch, draws):
            return module(batch["x"]).square().mean(dim=1)

    assert saved_bytes(Layer(), CONFIG, CPU, 8) == 8 * (32 + 64) * 4


def test_the_matrix_rate_is_that_of_a_matrix_product():
    rate = matrix_rate(CPU, "fp32")
    assert 1e9 < rate < 1e14


def test_attention_written_out_is_attention():
    from ditlab.models.attention import attend

    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(2, 3, 7, 8, generator=generator).bfloat16() for _ in range(3))
    expected = torch.nn.functional.scaled_dot_product_attention(q.double(), k.double(), v.double())
    written = attend(q.requires_grad_(), k, v)  # bfloat16, training, on a CPU
    with torch.no_grad():
        fused = attend(q, k, v)
    for made in (written, fused):
        assert made.dtype == torch.bfloat16
        torch.testing.assert_close(made.double(), expected, rtol=0.02, atol=0.02)
