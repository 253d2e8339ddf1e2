"""TensorBoard as a callback: the rows of metrics.jsonl as curves, sample pictures as images."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ditlab.errors import UserError
from ditlab.train.callbacks import Callback, Event, Row


class TensorBoard(Callback):
    """Write a run's metrics and sample pictures for TensorBoard; the steps of its charts are images trained on.

    A resumed run continues its curves from the checkpoint.

    Args:
        folder: of the event files; by default ``tensorboard`` in the run folder.

    Raises:
        UserError: the package tensorboard is not installed.
    """

    def __init__(self, folder: str | Path | None = None):
        if importlib.util.find_spec("tensorboard") is None:
            raise UserError("TensorBoard needs the package tensorboard; pip install 'ditlab[tensorboard]'")
        self.folder = None if folder is None else Path(folder)
        self._writer: Any = None

    def on_step(self, event: Event) -> None:
        """Open the writer at the first step."""
        if self._writer is None and event.processes.is_main:
            from torch.utils.tensorboard import SummaryWriter

            folder = self.folder or event.folder / "tensorboard"
            # Rows after the checkpoint that a run resumes from are written again.
            self._writer = SummaryWriter(str(folder), purge_step=event.images)

    def on_metrics(self, event: Event, row: Row) -> None:
        """Numbers as scalars, a new sample picture as an image."""
        if self._writer is None:
            return
        for name, value in row.items():
            if name != "images" and isinstance(value, int | float):
                self._writer.add_scalar(name, value, event.images)
        if event.picture.exists():
            with Image.open(event.picture) as picture:
                pixels = np.asarray(picture.convert("RGB"))
            self._writer.add_image("samples", pixels, event.images, dataformats="HWC")
        self._writer.flush()

    def on_end(self, event: Event) -> None:
        """Close the files."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None
