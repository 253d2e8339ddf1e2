"""Sampling flags that `sample` and `evaluate` share."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from ditlab.pipelines import Pipeline, SampleConfig


@dataclass(frozen=True, kw_only=True)
class SamplingOptions:
    """Flags that replace a model's sampling defaults."""

    guidance: float | None = None
    """Classifier-free guidance scale; 1 is off."""
    guidance_low: float | None = None
    """Lowest time with guidance, from 0 (data) to 1 (noise)."""
    guidance_high: float | None = None
    """Highest time with guidance."""
    guidance_channels: int | None = None
    """Number of latent channels with guidance, from the first; 0 is all, 3 as in the published DiT samples."""
    steps: int | None = None
    """Sampling steps."""
    sampler: str | None = None
    """ddpm, ddim, euler, heun or dpm-solver."""
    seed: int = 0
    """Image k of a seed does not depend on count and batch, up to one level of 255 of rounding."""
    batch: int = 64
    """Images at a time; reduced if they do not fit in GPU memory."""
    precision: Literal["auto", "fp32", "bf16"] | None = None
    """bf16 computes matrix products in bfloat16; auto is bf16 on a GPU and fp32 on a CPU."""
    compile: bool = False
    """Compile the network first; worth it for thousands of sampling steps."""

    def config(self, model: Pipeline) -> SampleConfig:
        """The model's sampling defaults with the given flags applied."""
        guidance = {"scale": self.guidance, "low": self.guidance_low, "high": self.guidance_high}
        guidance["channels"] = self.guidance_channels
        changes = {"steps": self.steps, "sampler": self.sampler, "precision": self.precision}
        return replace(model.defaults, guidance=replace(model.defaults.guidance, **_given(guidance)), **_given(changes))


def _given(flags: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in flags.items() if value is not None}
