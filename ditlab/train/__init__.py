"""The training loop, its tasks and callbacks, checkpoints and report; called, it is ``ditlab.recipes.api.train``."""

import sys

from ditlab import CallablePackage
from ditlab.train.callbacks import AutoencoderFile, Callback, Event, ModelFile, Reconstructions, SampleGrid
from ditlab.train.config import TrainConfig
from ditlab.train.loop import train
from ditlab.train.meter import read_metrics
from ditlab.train.monitor import BlockMonitor, HeldOutLoss
from ditlab.train.report import loss_figure, write_report
from ditlab.train.task import Task
from ditlab.train.tasks import AutoencoderTask, DiffusionTask
from ditlab.train.tensorboard import TensorBoard
from ditlab.train.timing import time_images

__all__ = [
    "AutoencoderFile", "AutoencoderTask", "BlockMonitor", "Callback", "DiffusionTask", "Event", "HeldOutLoss",
    "ModelFile", "Reconstructions", "SampleGrid", "Task", "TensorBoard", "TrainConfig", "loss_figure", "read_metrics",
    "time_images", "train", "write_report",
]  # fmt: skip

sys.modules[__name__].__class__ = CallablePackage
