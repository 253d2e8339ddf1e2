"""A block of one's own: the page's file trains, its model loads where the name is registered, mistakes are said."""

from __future__ import annotations

import re
import runpy
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from specs import image_spec

import ditlab
from ditlab.models import Condition, DiT, DiTConfig, cost
from ditlab.models.blocks import BLOCKS, AdaLNZeroBlock
from ditlab.train import read_metrics

PAGE = Path(__file__).resolve().parents[2] / "docs" / "blocks.md"
SHORT = (
    "--train.images 192 --train.batch 32 --train.log 64 --train.checkpoint 192 --train.samples 192 --model.depth 2 "
    "--sample.steps 2 --sample-images 4"
)


@pytest.fixture(autouse=True)
def _blocks() -> Iterator[None]:
    """Registered blocks are forgotten after a test."""
    before = dict(BLOCKS)
    yield
    BLOCKS.clear()
    BLOCKS.update(before)


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The page's file, with the lines that start commands, in the current folder."""
    code = re.findall(r"```python\n(.*?)```", PAGE.read_text(), flags=re.DOTALL)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "parallel_block.py").write_text(code[0] + "\n\n" + code[-1])
    return tmp_path / "parallel_block.py"


def test_the_file_of_the_page_trains_and_the_model_is_sampled_through_it(file: Path, ditlab, refused, monkeypatch):
    ended = ditlab("train", file, *SHORT.split(), "--out", "runs/parallel")
    assert ended.code == 0, ended
    losses = [row["loss"] for row in read_metrics(Path("runs/parallel")) if "loss" in row]
    assert np.isfinite(losses).all()
    del BLOCKS["parallel"]
    refused(["sample", "runs/parallel"], "unknown block 'parallel'", "register_block")
    refused(["train", "runs/parallel"], "unknown block 'parallel'", "register_block")
    monkeypatch.setattr(
        sys, "argv", ["parallel_block.py", "sample", "runs/parallel", "--count", "4", "--out", "grid.png"]
    )
    runpy.run_path(str(file), run_name="__main__")
    assert Path("grid.png").exists()


def test_the_block_of_the_page_computes_what_it_says(file: Path):
    runpy.run_path(str(file))
    config = DiTConfig(depth=1, width=32, heads=2, block="parallel")
    network = DiT(config, image_spec(channels=1, height=8, width=8, classes=3))
    assert cost(config, network.spec).gmacs > 0
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.normal_(std=0.2, generator=torch.Generator().manual_seed(0))
    block = network.blocks[0]
    assert isinstance(block, AdaLNZeroBlock)
    x, c = torch.randn(2, 16, 32), torch.randn(2, 1, 32)
    layout = network.layouts(network.patching.to_tokens(torch.zeros(2, 1, 8, 8)), 0)
    with torch.no_grad():
        y, context = block(x, None, c, layout)
        shift, scale, gate = block.modulation(torch.nn.functional.silu(c)).chunk(3, dim=2)
        h = torch.nn.functional.layer_norm(x, (32,), eps=1e-6) * (1 + scale) + shift
        expected = x + gate * (block.attention(h, layout.rope, None) + block.mlp(h))
    assert context is None
    torch.testing.assert_close(y, expected)
    network.initialise(torch.Generator().manual_seed(0))
    torch.testing.assert_close(network.blocks[0](x, None, c, layout)[0], x)
    network(torch.randn(2, 1, 8, 8), torch.rand(2), Condition.of_labels(torch.tensor([0, -1]))).sum().backward()


def test_mistakes_in_registering_are_said():
    for name in ("adaln-zero", ""):
        with pytest.raises(ditlab.UserError, match=f"block name '{name}' is taken"):
            ditlab.register_block(name)
    for wrong in (torch.nn.Linear, AdaLNZeroBlock.forward):
        with pytest.raises(ditlab.UserError, match="no subclass"):
            ditlab.register_block("own")(wrong)  # type: ignore[type-var]
    assert "own" not in BLOCKS
    first = ditlab.register_block("own")(type("Own", (AdaLNZeroBlock,), {}))
    again = ditlab.register_block("own")(type("Own", (AdaLNZeroBlock,), {}))  # as a notebook's cell, run twice
    assert BLOCKS["own"] is again is not first
