"""The diffusion process: schedules, time grids, predictions, denoiser, guidance, samplers, losses."""

from ditlab.diffusion.denoiser import Denoiser, Prediction, Rows, ScheduleStep, schedule_steps
from ditlab.diffusion.draws import Positions
from ditlab.diffusion.guidance import ClampedX0, ClassifierFreeGuidance, Guidance, GuidanceConfig, Interpolated, Query
from ditlab.diffusion.losses import LOSSES, DiffusionConfig, FlowMatching, Hybrid, Loss
from ditlab.diffusion.predictions import TARGETS, Corrupted, corrupt, to_x0_epsilon
from ditlab.diffusion.samplers import SAMPLERS, State, Trajectory, sample
from ditlab.diffusion.schedules import SCHEDULES, LinearBeta, RectifiedFlow, Schedule
from ditlab.diffusion.time_grid import TimeGrid

__all__ = [
    "LOSSES", "SAMPLERS", "SCHEDULES", "TARGETS", "ClampedX0", "ClassifierFreeGuidance", "Corrupted", "Denoiser",
    "DiffusionConfig", "FlowMatching", "Guidance", "GuidanceConfig", "Hybrid", "Interpolated", "LinearBeta", "Loss",
    "Positions", "Prediction", "Query", "RectifiedFlow", "Rows", "Schedule", "ScheduleStep", "State", "TimeGrid",
    "Trajectory", "corrupt", "sample", "schedule_steps", "to_x0_epsilon",
]  # fmt: skip
