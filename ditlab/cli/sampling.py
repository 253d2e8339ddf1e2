"""How a model is sampled, as flags: what `sample` and `evaluate` have in common."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from ditlab.pipelines import Pipeline, SampleConfig


@dataclass(frozen=True, kw_only=True)
class SamplingOptions:
    """Flags that change a model's own way of sampling where they are given."""

    guidance: float | None = None
    """Classifier-free guidance scale; 1 is off."""
    guidance_low: float | None = None
    """Guide only at times of at least this (1 is noise)."""
    guidance_high: float | None = None
    """Guide only at times of at most this."""
    guidance_channels: int | None = None
    """Guide only the first so many latent channels; 0 is all, 3 what DiT's published numbers did."""
    steps: int | None = None
    """Sampling steps."""
    sampler: str | None = None
    """ddpm, ddim, euler, heun or dpm-solver."""
    seed: int = 0
    """Image k of a seed is the same whatever the count and the batch (to one level of 255 between batches)."""
    label_order: Literal["turn", "random"] = "turn"
    """turn: every class equally often; random: each label drawn with the seed, as DiT's and ADM's scripts do."""
    batch: int = 64
    """How many at a time; fewer where they do not fit in the GPU's memory."""
    precision: Literal["auto", "fp32", "bf16"] | None = None
    """bf16 computes matrix products in bfloat16; auto takes it on GPUs."""
    compile: bool = False
    """Compile the network first, which pays for thousands of steps."""

    def config(self, model: Pipeline) -> SampleConfig:
        """The model's own way of sampling, changed where flags say so."""
        default = model.defaults
        told = {
            "scale": self.guidance,
            "low": self.guidance_low,
            "high": self.guidance_high,
            "channels": self.guidance_channels,
        }
        guidance = replace(default.guidance, **{name: value for name, value in told.items() if value is not None})
        changes = {"steps": self.steps, "sampler": self.sampler, "precision": self.precision}
        given = {name: value for name, value in changes.items() if value is not None}
        return replace(default, guidance=guidance, **given)  # type: ignore[arg-type]
