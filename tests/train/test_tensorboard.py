"""TensorBoard's files, read back by its own reader, and the hooks of callbacks over a stop and a resumption."""

from __future__ import annotations

import importlib.util
import io
import os
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import ditlab
from ditlab.errors import Stopped, UserError
from ditlab.train import Callback, TensorBoard, read_metrics


class StopAfter(Callback):
    """Sends SIGTERM after some images; keeps the calls of its hooks."""

    def __init__(self, images: int):
        self.images, self.calls = images, []

    def on_step(self, event: Any) -> None:
        if event.images == self.images:
            os.kill(os.getpid(), signal.SIGTERM)

    def on_checkpoint(self, event: Any) -> None:
        self.calls.append(("checkpoint", event.images))

    def on_end(self, event: Any) -> None:
        self.calls.append(("end", event.images, event.last))


def test_a_stopped_and_resumed_run_has_each_row_and_picture_once(tmp_path: Path):
    pytest.importorskip("tensorboard", reason="TensorBoard is an extra")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    recipe = ditlab.recipe(
        "digits", depth=1, width=16, heads=2, sample={"steps": 2}, sample_images=4,
        train={"steps": 10, "batch": 8, "log": 16, "checkpoint": 48, "samples": 32},
    )  # fmt: skip
    stop = StopAfter(40)
    with pytest.raises(Stopped):
        ditlab.train(recipe, tmp_path, callbacks=[stop, TensorBoard()])
    assert stop.calls == [("checkpoint", 40), ("end", 40, False)]
    stop.calls.clear()
    ditlab.train(recipe, tmp_path, callbacks=[stop, TensorBoard()])
    assert stop.calls == [("checkpoint", 48), ("checkpoint", 80), ("end", 80, True)]

    rows = read_metrics(tmp_path)
    stored = EventAccumulator(str(tmp_path / "tensorboard"))
    stored.Reload()
    for name in ("loss", "lr", "held_out_loss", "images_per_second"):
        expected = [(row["images"], row[name]) for row in rows if name in row]
        found = [(point.step, point.value) for point in stored.Scalars(name)]
        np.testing.assert_allclose(found, expected, rtol=1e-6)
    assert [row["images"] for row in rows] == [16, 32, 48, 64, 80]
    pictures = stored.Images("samples")
    assert [picture.step for picture in pictures] == [32, 64, 80]
    drawn = Image.open(io.BytesIO(pictures[-1].encoded_image_string))
    with Image.open(tmp_path / "samples" / f"{80:012d}.png") as written:
        np.testing.assert_array_equal(np.asarray(drawn), np.asarray(written.convert("RGB")))


def test_without_the_package_the_extra_is_named(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"ditlab\[tensorboard\]"):
        TensorBoard()
