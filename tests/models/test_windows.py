"""Attention within frames and windows: against masked full attention, what tokens depend on, cost, W.A.L.T's sizes."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from ditlab.errors import UserError
from ditlab.models import Condition, DiT, DiTConfig, LatentSpec, NetworkSpec, TextConfig, build, cost, labelled
from ditlab.models.attention import SelfAttention, Windows
from ditlab.models.blocks import Context
from ditlab.models.layout import frame_windows, rotary_positions, time_windows

FRAMES, ROWS, COLUMNS = 3, 4, 6
GRID = (FRAMES, ROWS, COLUMNS)
CONFIG = DiTConfig(depth=2, width=24, heads=3, patch=1, attention="windows", window=(2, 3))
KINDS = {"frames": frame_windows(GRID), "windows": time_windows(GRID, (2, 3)), "places": time_windows(GRID, (1, 1))}


def network_of(config: DiTConfig, frames: int = FRAMES) -> DiT:
    """A network in float64 with no weight at zero."""
    network = build(config, labelled(LatentSpec(2, (frames, ROWS, COLUMNS)), 5))
    assert isinstance(network, DiT)
    generator = torch.Generator().manual_seed(0)
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.2, generator=generator)
    return network.double().eval()


def sample(frames: int = FRAMES) -> Tensor:
    return torch.randn(2, 2, frames, ROWS, COLUMNS, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


T = torch.tensor([0.3, 0.7], dtype=torch.float64)
LABELS = Condition.of_labels(torch.tensor([1, 4]))


@torch.no_grad()
@pytest.mark.parametrize("kind", KINDS)
def test_windows_equal_masked_full_attention(kind: str):
    tokens, length = KINDS[kind], FRAMES * ROWS * COLUMNS
    assert sorted(tokens.flatten().tolist()) == list(range(length))
    mask = torch.zeros(length, length, dtype=torch.bool)
    for window in tokens:
        mask[window[:, None], window] = True
    attention = SelfAttention(32, 2).double()
    x = torch.randn(2, length, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    rope = rotary_positions(16, GRID).double()
    within = attention(x, rope, windows=Windows(tokens, tokens.flatten().argsort()))
    torch.testing.assert_close(within, attention(x, rope, mask), atol=1e-10, rtol=0)
    assert (within - attention(x, rope)).abs().max() > 1e-3
    windows = Windows(tokens, tokens.flatten().argsort())
    torch.testing.assert_close(attention.weights(x, rope, None, windows), attention.weights(x, rope, mask))


def test_windows_are_those_of_the_paper():
    f, h, w = (axis.flatten() for axis in torch.meshgrid(*map(torch.arange, GRID), indexing="ij"))
    assert all(len(set(f[window].tolist())) == 1 for window in KINDS["frames"])
    assert KINDS["windows"].shape == (4, FRAMES * 2 * 3)
    for window in KINDS["windows"]:
        assert set(f[window].tolist()) == set(range(FRAMES))
        assert len(set((h[window] // 2).tolist())) == len(set((w[window] // 3).tolist())) == 1
    assert all(len({(int(h[k]), int(w[k])) for k in window}) == 1 for window in KINDS["places"])


@torch.no_grad()
@pytest.mark.parametrize("attention", ["windows", "axes"])
def test_the_first_block_sees_a_frame_and_the_second_all_frames(attention: str):
    x, y = sample(), sample()
    y[:, :, 2, 3, 5] += 1  # one place of the last frame
    window = (2, 3) if attention == "windows" else ()
    for depth in (1, 2):
        network = network_of(replace(CONFIG, depth=depth, attention=attention, window=window))
        moved = (network(x, T, LABELS) - network(y, T, LABELS)).abs().sum(dim=(0, 1)) > 1e-9
        assert moved[2].all()
        assert moved[:2].all() if depth == 2 else not moved[:2].any()


@torch.no_grad()
def test_a_token_of_an_image_attends_to_itself_in_windows_over_time():
    """W.A.L.T's identity mask: the value of a token is its attention."""
    network = network_of(replace(CONFIG, depth=1), frames=1)
    windows = network.layouts.windows(network.patching.to_tokens(sample(1)))
    assert windows[1] is not None
    assert windows[1].tokens.shape == (ROWS * COLUMNS, 1)
    attention: Any = network.blocks[0].attention
    x = torch.randn(1, ROWS * COLUMNS, 24, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    value = attention.project(x)[2].transpose(1, 2).flatten(2)
    torch.testing.assert_close(attention(x, windows=windows[1]), attention.projection(value), atol=1e-12, rtol=0)


@torch.no_grad()
def test_one_network_makes_other_lengths_and_sizes():
    network = network_of(CONFIG)
    for frames, rows, columns in ((1, 4, 6), (5, 4, 6), (2, 6, 3)):
        x = torch.randn(2, 2, frames, rows, columns, dtype=torch.float64)
        assert network(x, T, LABELS).shape[2:] == (frames, rows, columns)
    with pytest.raises(UserError, match="windows of 2x3 patches do not divide frames of 5x6"):
        network(torch.randn(2, 2, 2, 5, 6, dtype=torch.float64), T, LABELS)


def test_the_cost_of_attention_is_that_of_its_windows():
    spec = labelled(LatentSpec(2, GRID), 5)
    costs = {
        name: 1e9 * cost(replace(CONFIG, attention=name, window=(2, 3) if name == "windows" else ()), spec).gmacs  # type: ignore[arg-type]
        for name in ("full", "windows", "axes")
    }
    length, frame = FRAMES * ROWS * COLUMNS, ROWS * COLUMNS
    keys = {"windows": frame + FRAMES * 2 * 3, "axes": frame + FRAMES, "full": 2 * length}  # of the two blocks
    for name in ("windows", "axes"):
        assert costs["full"] - costs[name] == pytest.approx(2 * length * 24 * (keys["full"] - keys[name]), rel=1e-6)


@pytest.mark.parametrize(("depth", "width", "millions"), [(24, 1024, 313), (28, 1152, 460)])
def test_parameters_of_walt_are_as_published(depth: int, width: int, millions: int):
    """W.A.L.T L and XL (Gupta et al. 2023, table 5), of UCF-101's classes, with AdaLN-LoRA of rank 2."""
    config = DiTConfig(
        depth=depth, width=width, heads=16, patch=1, attention="windows", window=(8, 8), modulation_rank=2, qk_norm=True
    )
    counted = cost(config, labelled(LatentSpec(8, (5, 16, 16)), 101)).total_parameters
    assert counted == pytest.approx(1e6 * millions, rel=0.01)


@torch.no_grad()
def test_text_reaches_windows_by_cross_attention_and_blocks_compile_without_breaks():
    spec = NetworkSpec(LatentSpec(2, GRID), (TextConfig(vocabulary=9, tokens=4),))
    network = build(replace(CONFIG, block="adaln-cross-attention"), spec)
    assert isinstance(network, DiT)
    network.initialise(torch.Generator().manual_seed(0))
    x, ids = sample().float(), torch.tensor([[1, 2, 0], [3, 4, 5]])
    condition = Condition.of_text(ids, ids > 0)
    assert network(x, T.float(), condition).shape == x.shape
    tokens = network.patching.to_tokens(x)
    layout = network.layouts(tokens, 0)._replace(windows=network.layouts.windows(tokens)[1])
    context = Context(torch.randn(2, 3, 24), ids > 0)
    inputs = (torch.randn(2, len(layout.positions), 24), context, torch.randn(2, 1, 24), layout, None)
    compiled = torch.compile(network.blocks[0], backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(*inputs)[0], network.blocks[0](*inputs)[0])
    torch._dynamo.reset()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"block": "in-context"}, "no part of the sequence"),
        ({"attention": "full"}, "for --model.attention windows"),
        ({"window": (2,)}, "rows and columns"),
        ({"window": (0, 3)}, "rows and columns"),
    ],
)
def test_what_does_not_go_together_is_refused(changes: dict, words: str):
    with pytest.raises(UserError, match=words):
        build(replace(CONFIG, **changes), labelled(LatentSpec(2, GRID), 5))


def test_windows_are_not_packed():
    network = network_of(CONFIG)
    assert not network.supports.packs
    with pytest.raises(UserError, match="several sizes in one sequence"):
        network.forward_pack([sample()[0]], T[:1], LABELS)
