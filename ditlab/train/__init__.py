"""The training loop, its objectives, checkpoints and report."""

from ditlab.train.config import TrainConfig
from ditlab.train.loop import train
from ditlab.train.meter import read_metrics
from ditlab.train.report import loss_figure, write_report
from ditlab.train.tasks import AutoencoderTask, DiffusionTask, Task

__all__ = [
    "AutoencoderTask",
    "DiffusionTask",
    "Task",
    "TrainConfig",
    "loss_figure",
    "read_metrics",
    "train",
    "write_report",
]
