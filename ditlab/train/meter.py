"""Metrics of a run: losses by time since the last row, skipped steps, and metrics.jsonl."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path

import torch
from torch import Tensor

from ditlab.errors import UserError
from ditlab.runtime import files
from ditlab.runtime.distributed import Processes

BINS = 10  # of time, in which losses are logged
METRICS = "metrics.jsonl"


class MetricAverager:
    """Sums losses on the device since the last row of metrics, in all and by bin of time, and counts skipped steps.

    Each process adds its own share of the losses; whether a step is skipped is the same for all.
    """

    def __init__(self, device: torch.device):
        self.sums = torch.zeros(BINS, dtype=torch.float64, device=device)
        self.counts = torch.zeros(BINS, dtype=torch.float64, device=device)
        self.skipped = torch.zeros(3, dtype=torch.int64, device=device)  # in all, in a row now, most in a row
        self.timed = False

    def add(self, losses: Tensor, times: Tensor | None, finite: Tensor) -> None:
        """Add losses (N,) at times (N,) in [0, 1] of a step, or count it as skipped if ``finite`` () is false.

        Without times they go into the first bin.
        """
        self.timed = times is not None
        bins = (torch.zeros_like(losses) if times is None else times * BINS).long().clamp(0, BINS - 1)
        taken = finite.double()
        self.sums.index_add_(0, bins, torch.where(finite, losses.detach().double(), 0.0))
        self.counts.index_add_(0, bins, taken.expand(len(losses)))
        skipped = 1 - taken.long()
        total, row = self.skipped[0] + skipped, (self.skipped[1] + 1) * skipped
        self.skipped.copy_(torch.stack([total, row, torch.maximum(self.skipped[2], row)]))

    def result(self, processes: Processes) -> dict[str, object]:
        """Mean loss, mean loss by bin if there are times (None for an empty bin), skipped steps so far; then reset."""
        sums, counts = self._totals(processes)
        self.sums.zero_()
        self.counts.zero_()
        row: dict[str, object] = {"loss": sum(sums) / sum(counts) if sum(counts) else None}
        if self.timed:
            row["loss_by_time"] = [s / c if c else None for s, c in zip(sums, counts, strict=True)]
        return row | {"skipped": int(self.skipped[0])}

    def state(self, processes: Processes) -> dict[str, list[float]]:
        """The state over all processes, as numbers; float64 survives JSON unchanged."""
        sums, counts = self._totals(processes)
        return {"sums": sums, "counts": counts, "skipped": self.skipped.tolist()}

    def _totals(self, processes: Processes) -> list[list[float]]:
        """Sums and counts over all processes."""
        return processes.all_reduce_sum(torch.stack([self.sums, self.counts])).tolist()

    def restore(self, state: dict[str, list[float]], processes: Processes) -> None:
        """Continue from a state; the main process takes the sums of all."""
        for name in ("sums", "counts"):
            values = torch.tensor(state[name], dtype=torch.float64)
            getattr(self, name).copy_(values if processes.is_main else values * 0)
        self.skipped.copy_(torch.tensor(state["skipped"]))


class Metrics:
    """metrics.jsonl: rows up to the checkpoint that a run resumes from are kept, later ones are repeated."""

    def __init__(self, folder: Path, images: int):
        self.path = folder / METRICS
        rows = [row for row in read_metrics(folder) if row["images"] <= images]
        files.write_file(self.path, "".join(json.dumps(row) + "\n" for row in rows))

    def add(self, row: dict[str, object]) -> None:
        """Append a row; UserError if the disk is full or the folder is gone."""
        try:
            with self.path.open("a") as file:
                file.write(json.dumps(row) + "\n")
        except OSError as error:
            what = f"cannot write {self.path}: {error.strerror}"
            raise UserError(f"{what}; make room, then run the same command") from error


def read_metrics(folder: Path) -> list[dict]:
    """The rows of a run's metrics.jsonl; a half-written last line is skipped."""
    path, rows = folder / METRICS, []
    for line in path.read_text().splitlines() if path.exists() else ():
        with contextlib.suppress(ValueError):
            rows.append(json.loads(line))
    return rows
