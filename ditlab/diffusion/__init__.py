"""The diffusion process: schedules, corruption, denoiser, losses, guidance, samplers."""

from ditlab.diffusion.corruption import TARGETS, Corrupted, corrupt
from ditlab.diffusion.denoiser import Bounded, Denoiser, Point, Prediction, points
from ditlab.diffusion.guidance import Between, ClassifierFree, GuidanceConfig
from ditlab.diffusion.losses import DiffusionConfig, FlowMatching, Hybrid, Loss, build_loss
from ditlab.diffusion.samplers import SAMPLERS, State, sample
from ditlab.diffusion.schedules import SCHEDULES, LinearBeta, RectifiedFlow, Schedule

__all__ = [
    "SAMPLERS",
    "SCHEDULES",
    "TARGETS",
    "Between",
    "Bounded",
    "ClassifierFree",
    "Corrupted",
    "Denoiser",
    "DiffusionConfig",
    "FlowMatching",
    "GuidanceConfig",
    "Hybrid",
    "LinearBeta",
    "Loss",
    "Point",
    "Prediction",
    "RectifiedFlow",
    "Schedule",
    "State",
    "build_loss",
    "corrupt",
    "points",
    "sample",
]
