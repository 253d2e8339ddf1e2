"""Sampling flags that `sample` and `evaluate` share."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from ditlab.runtime.console import log

if TYPE_CHECKING:
    from ditlab.pipelines import Pipeline, SampleConfig
    from ditlab.runtime.distributed import Processes

TIMED = 8  # images of a timed sampling step


def choose_threads(model: Pipeline, config: SampleConfig, count: int, processes: Processes) -> None:
    """On a CPU, take one thread or all, whichever makes a sampling step of a few images faster, and log it."""
    from ditlab.runtime.threads import describe, thread_counts, time_threads

    counts = thread_counts(0, processes)
    if model.device.type == "cpu" and len(counts) > 1 and count > 0:
        condition = model.condition(None, min(count, TIMED))
        log(describe(time_threads(lambda: next(model.states(condition, 0, 0, config)), counts)))


def _of_model(metavar: str) -> Any:
    """A flag whose default is the model's; `--help` shows it, if the model is given."""

    def hint(default: str) -> str:
        return "(default: of the model)" if default == "None" else f"(default: {default})"

    return tyro.conf.arg(metavar=metavar, help_behavior_hint=hint)


@dataclass(frozen=True, kw_only=True)
class SamplingOptions:
    """Flags that replace a model's sampling defaults."""

    guidance: Annotated[float | None, _of_model("FLOAT")] = None
    """Classifier-free guidance scale; 1 is off."""
    guidance_low: Annotated[float | None, _of_model("FLOAT")] = None
    """Lowest time with guidance, from 0 (data) to 1 (noise)."""
    guidance_high: Annotated[float | None, _of_model("FLOAT")] = None
    """Highest time with guidance."""
    guidance_channels: Annotated[int | None, _of_model("INT")] = None
    """Number of latent channels with guidance, from the first; 0 is all, 3 as in the published DiT samples."""
    steps: Annotated[int | None, _of_model("INT")] = None
    """Sampling steps."""
    sampler: Annotated[str | None, _of_model("NAME")] = None
    """ddpm, ddim, euler, heun or dpm-solver."""
    seed: int = 0
    """Image k of a seed does not depend on count and batch, up to one level of 255 of rounding."""
    batch: int = 64
    """Images at a time; reduced if they do not fit in GPU memory."""
    precision: Annotated[Literal["auto", "fp32", "bf16"] | None, _of_model("{auto,fp32,bf16}")] = None
    """bf16 computes matrix products in bfloat16; auto is bf16 on a GPU and fp32 on a CPU."""
    device: str = ""
    """cpu, cuda, cuda:1 or mps; empty: a GPU if there is one."""
    compile: bool = False
    """Compile the network first; worth it for thousands of sampling steps."""

    def config(self, model: Pipeline) -> SampleConfig:
        """The model's sampling defaults with the given flags applied."""
        guidance = {"scale": self.guidance, "low": self.guidance_low, "high": self.guidance_high}
        guidance["channels"] = self.guidance_channels
        changes = {"steps": self.steps, "sampler": self.sampler, "precision": self.precision}
        return replace(model.defaults, guidance=replace(model.defaults.guidance, **_given(guidance)), **_given(changes))


def help_defaults(words: Sequence[str]) -> dict[str, Any]:
    """For `--help` after a model: its sampling defaults, by flag; empty otherwise. Nothing but ``model.json`` is read."""
    if len(words) < 2 or words[0].startswith("-") or not {"-h", "--help"} & set(words):
        return {}
    from ditlab.pipelines.shipped import locate

    folder = locate(words[0].removesuffix("/model.safetensors"))
    try:
        stored = json.loads((folder / "model.json").read_text())["sample"]
        guidance = stored["guidance"]
        return {
            **{name: stored[name] for name in ("steps", "sampler", "precision")},
            **{f"guidance_{name}": guidance[name] for name in ("low", "high", "channels")},
            "guidance": guidance["scale"],
        }
    except (OSError, ValueError, KeyError, TypeError):  # not a model, or of format 1: the flags are still to be listed
        return {}


def _given(flags: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in flags.items() if value is not None}
