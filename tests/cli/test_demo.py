"""The demo, shortened: it trains, measures against real digits, draws, and says where."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ditlab.cli.demo_run import Judge, run_demo
from ditlab.data import DataConfig, open_data


@pytest.fixture(scope="module")
def judge() -> Judge:
    return Judge(open_data(DataConfig(source="digits")).load())


def test_the_judge_knows_real_digits_and_is_not_fooled(judge: Judge):
    digits = open_data(DataConfig(source="digits")).load()
    images = digits.pixels.transpose(0, 2, 3, 1)
    assert judge.held_out >= 0.98
    real = judge.measure(images, digits.labels)
    assert (real.precision, real.recall) == (1, 1)
    assert real.right > 0.99
    assert judge.measure(images, (digits.labels + 1) % 10).right < 0.01
    noise = np.random.default_rng(0).integers(0, 256, images.shape, np.uint8)
    assert judge.measure(noise, digits.labels).precision < 0.01
    floor = judge.floor()
    assert 0.88 < floor.precision < 0.96
    assert 0.88 < floor.recall < 0.96


def test_the_demo_ends_with_pictures_numbers_and_their_places(tmp_path: Path):
    said: list[str] = []
    rows = run_demo(tmp_path / "demo", said.append, images=2560)
    assert len(rows) == 3
    assert all(0 <= share <= 1 for row in rows.values() for share in (row.right, row.precision, row.recall))
    for name in ("digits.png", "filmstrip.png", "fashion.png"):
        with Image.open(tmp_path / "demo" / name) as picture:
            assert min(picture.size) > 200
        assert any(str(tmp_path / "demo" / name) in line for line in said)
    page = (tmp_path / "demo" / "demo.md").read_text()
    for row in rows.values():
        assert f"{row.precision:.3f} | {row.recall:.3f}" in page
