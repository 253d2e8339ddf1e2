"""The training loop, its objectives, checkpoints and report."""

from ditlab.train.config import TrainConfig
from ditlab.train.loop import progress_bar, train
from ditlab.train.meter import read_metrics
from ditlab.train.objectives import AutoencoderObjective, DiffusionObjective, Objective
from ditlab.train.report import loss_figure, write_report

__all__ = [
    "AutoencoderObjective",
    "DiffusionObjective",
    "Objective",
    "TrainConfig",
    "loss_figure",
    "progress_bar",
    "read_metrics",
    "train",
    "write_report",
]
