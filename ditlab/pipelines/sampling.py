"""How samples are made: the configuration, and the random generators that belong to seeds."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np
import torch

from ditlab.diffusion import GuidanceConfig
from ditlab.errors import UserError, nearest


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
    negative: str = ""
    """Text, or a class, to guide away from; empty guides away from no condition."""

    def changed(
        self, guidance: float | GuidanceConfig | None = None, steps: int | None = None, sampler: str | None = None,
        precision: str | None = None, negative: str | None = None,
    ) -> SampleConfig:  # fmt: skip
        """This configuration with other values where they are given; a number is the scale of the guidance."""
        if guidance is not None and not isinstance(guidance, GuidanceConfig):
            guidance = replace(self.guidance, scale=float(guidance))
        given = {"guidance": guidance, "steps": steps, "sampler": sampler, "precision": precision}
        given |= {"negative": negative}
        return replace(self, **{name: value for name, value in given.items() if value is not None})  # type: ignore[arg-type]

    def bf16_on(self, device: torch.device) -> bool:
        """Whether matrix products are in bfloat16 on a device."""
        return device.type == "cuda" if self.precision == "auto" else self.precision == "bf16"


# Arguments of other libraries' pipelines, by those that do the same here.
FAMILIAR = {
    "guidance_scale": "guidance", "cfg_scale": "guidance", "cfg": "guidance", "num_inference_steps": "steps",
    "num_steps": "steps", "scheduler": "sampler", "generator": "seed", "class_labels": "labels", "num_images": "count",
    "num_images_per_prompt": "count", "batch_size": "batch", "height": "size", "width": "size", "latents": "noise",
    "output_type": "return_type", "callback_on_step_end": "callback", "prompt": "prompts", "negative_prompt": "negative",
}  # fmt: skip


def refuse_unknown(method: Callable[..., object], given: Iterable[str]) -> None:
    """Raise UserError for keyword arguments that a method does not have, with the one to use instead."""
    known = [name for name, each in inspect.signature(method).parameters.items() if each.kind != each.VAR_KEYWORD]
    for name in given:
        ours = f"use {FAMILIAR[name]}" if FAMILIAR.get(name) in known else nearest(name, known[1:])
        raise UserError(f"{method.__name__} has no argument {name!r}; {ours}")


def image_generator(seed: int, index: int) -> torch.Generator:
    """The generator of image ``index`` of ``seed``, the source of all its random numbers, in order.

    So an image does not depend on the batch or the process it is made in.

    Raises:
        UserError: a seed that is negative or no whole number.
    """
    if not isinstance(seed, int | np.integer) or seed < 0:
        raise UserError(f"seed {seed} is not possible; seeds are whole numbers, 0 or more")
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
