"""How samples are made: the configuration, and the random generators that belong to seeds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import torch

from ditlab.diffusion import GuidanceConfig
from ditlab.errors import UserError


@dataclass(frozen=True)
class SampleConfig:
    """How samples are made; by default the paper's 250 ancestral steps."""

    sampler: str = "ddpm"
    """ddpm, ddim, euler, heun or dpm-solver."""
    steps: int = 250
    """Sampling steps."""
    guidance: GuidanceConfig = field(default_factory=GuidanceConfig)
    """Classifier-free guidance."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """bf16 computes matrix products in bfloat16; auto is bf16 on GPUs, fp32 on CPUs."""

    def bf16_on(self, device: torch.device) -> bool:
        """Whether matrix products are in bfloat16 on a device."""
        return device.type == "cuda" if self.precision == "auto" else self.precision == "bf16"


@dataclass(frozen=True)
class Step:
    """A finished sampling step of a batch."""

    index: int  # from 1 to ``steps``
    steps: int  # of the whole sampling
    first: int  # index of the first image of the batch
    x: torch.Tensor  # the current sample, latents (N, c, h, w)


def image_generator(seed: int, index: int) -> torch.Generator:
    """The generator of image ``index`` of ``seed``, the source of all its random numbers, in order.

    So an image does not depend on the batch or the process it is made in.

    Raises:
        UserError: a negative seed.
    """
    if seed < 0:
        raise UserError(f"seed {seed} is negative; seeds are 0 or more")
    state = np.random.SeedSequence([seed, index]).generate_state(1, np.uint64)
    return torch.Generator().manual_seed(int(state[0]))


def image_generators(seed: int, first: int, count: int) -> list[torch.Generator]:
    """The generators of images ``first`` .. ``first + count - 1`` of ``seed``."""
    return [image_generator(seed, first + k) for k in range(count)]


def normal(generators: Sequence[torch.Generator], shape: tuple[int, ...], device: torch.device) -> torch.Tensor:
    """The next standard normal numbers of each generator, (len(generators), *shape).

    Drawn on the CPU, the same on every device. A copy from pinned memory does not wait for a GPU: while it computes a step,
    the noise of the next is drawn.
    """
    noise = torch.stack([torch.randn(shape, generator=generator) for generator in generators])
    return noise.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else noise.to(device)
