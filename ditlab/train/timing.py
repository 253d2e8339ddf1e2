"""How long training takes on this machine's CPU, measured before it starts."""

from __future__ import annotations

import copy
import os
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from ditlab.diffusion import Positions
from ditlab.runtime.console import log_nothing
from ditlab.runtime.distributed import ALONE, Processes
from ditlab.runtime.threads import ALL, thread_counts, time_threads
from ditlab.train.config import TrainConfig
from ditlab.train.profile import Profile
from ditlab.train.task import Task
from ditlab.train.trainer import Trainer

GMACS = 4.0  # of the forward pass of a timed step, about: seconds on one core
UNKNOWN = 0.05  # GMACs of an image, if the task does not know


def resumed_threads(config: TrainConfig, state: dict[str, Any] | None) -> int:
    """The number of CPU threads of this start: as set, or that of the checkpoint with ``state``, if this machine has as many.

    Numbers depend on it to float order: a run keeps it, and so resumes to the bit.
    """
    if config.threads or "OMP_NUM_THREADS" in os.environ:
        return config.threads or torch.get_num_threads()
    stored = (state or {}).get("threads", 0)
    return stored if 0 < stored <= ALL else torch.get_num_threads()


def time_images(task: Task, config: TrainConfig, processes: Processes) -> dict[int, float]:
    """Seconds of training per image of one process on the CPU, by number of threads; the fastest number stays set.

    Steps of a copy of the network are timed, so that training starts from the weights that ``task`` has.
    """
    count = max(1, min(config.batch // processes.size, int(GMACS / (task.macs / 1e9 or UNKNOWN))))
    copied = copy.copy(task)
    copied.module = copy.deepcopy(task.module)
    alone = replace(config, images=config.batch * 100, batch=count, compile="off", parallel="ddp")
    trainer = Trainer(copied, alone, ALONE, torch.device("cpu"), count)
    draws, profile = task.draw(Positions(0, 0, count)), Profile(None, log_nothing)
    batch = task.read(np.arange(count) % task.count, np.zeros(count, bool), draws)
    seconds = time_threads(lambda: trainer.step(0, batch, draws, profile), thread_counts(config.threads, processes))
    return {threads: step / count for threads, step in seconds.items()}
