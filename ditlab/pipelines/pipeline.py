"""The model file: network, schedule, autoencoder and label names together, saved, loaded, and asked for images."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Literal

import numpy as np
import safetensors.torch
import torch

from ditlab.diffusion import SCHEDULES, Denoiser, DiffusionConfig, GuidanceConfig
from ditlab.encoders import Autoencoder
from ditlab.encoders.record import restore
from ditlab.errors import UserError, nearest
from ditlab.models import Network, NetworkInput, build
from ditlab.models.network import from_record, to_record
from ditlab.pipelines.shipped import SHIPPED, locate
from ditlab.runtime import files
from ditlab.runtime.device import check_compiler
from ditlab.runtime.weights import load_weights

WEIGHTS, RECORD = "model.safetensors", "model.json"
FORMAT = 1


@dataclass(frozen=True)
class SampleConfig:
    """How images are made; the paper's 250 ancestral steps by default."""

    sampler: str = "ddpm"
    """ddpm, ddim, euler, heun or dpm-solver."""
    steps: int = 250
    """Sampling steps."""
    guidance: GuidanceConfig = field(default_factory=GuidanceConfig)
    """Classifier-free guidance."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """bf16 computes matrix products in bfloat16; auto takes it on GPUs."""

    def bf16_on(self, device: torch.device) -> bool:
        """Whether matrix products are in bfloat16 on a device."""
        return device.type == "cuda" if self.precision == "auto" else self.precision == "bf16"


class Pipeline:
    """A trained diffusion network, ready to make images.

    Attributes:
        denoiser: network, schedule and target.
        autoencoder: from latents to pixels.
        pixels: of an image, (C, H, W).
        names: of the classes, in label order; empty where they have none.
        defaults: how it samples unless told otherwise.
        facts: what else is known of it, as the images it was trained on.
    """

    def __init__(
        self,
        network: Network,
        diffusion: DiffusionConfig,
        autoencoder: Autoencoder,
        pixels: tuple[int, int, int],
        names: Sequence[str],
        defaults: SampleConfig,
        facts: dict[str, object] | None = None,
    ):
        schedule = SCHEDULES[diffusion.schedule]()
        self.denoiser = Denoiser(network, schedule, diffusion.target, diffusion.learned_variance)
        self.network, self.diffusion, self.autoencoder = network, diffusion, autoencoder
        self.pixels, self.names, self.defaults = pixels, tuple(names), defaults
        self.facts = facts or {}

    @property
    def classes(self) -> int:
        """How many classes the network knows; 0 if it is unconditional."""
        return self.network.input.classes

    @property
    def guidable(self) -> bool:
        """Whether it can be guided: it knows classes, and what no class is."""
        return self.classes > 0 and self.network.input.null_class

    @property
    def device(self) -> torch.device:
        """Where the network lies."""
        return next(self.network.parameters()).device

    def to(self, device: torch.device | str) -> Pipeline:
        """Move everything to a device."""
        self.denoiser.to(device)
        self.autoencoder.to(device)
        return self

    def compile(self) -> Pipeline:
        """Compile the network into one graph, for many batches of one size; on a GPU it then allocates nothing of its own.

        Raises:
            UserError: there is no compiler on this machine.
        """
        check_compiler(self.device, "no --compile")
        mode = "reduce-overhead" if self.device.type == "cuda" else "default"
        self.network.compile(mode=mode, dynamic=False)
        return self

    def label(self, wanted: str | int) -> int:
        """The index of a label given by name, in any case, or by number.

        Raises:
            UserError: unknown or out of range.
        """
        if not self.classes:
            raise UserError(f"label {wanted!r}: this model is unconditional, it has no labels")
        if isinstance(wanted, str):  # a name first, since names may be numbers; as written first, in any case then
            if wanted in self.names:
                return self.names.index(wanted)
            lowered = [name.lower() for name in self.names]
            if wanted.lower() in lowered:
                return lowered.index(wanted.lower())
        try:
            number = int(wanted)
        except ValueError:
            known = self.names or map(str, range(self.classes))
            raise UserError(f"unknown label {wanted!r}; {nearest(str(wanted), known)}") from None
        if not 0 <= number < self.classes:
            raise UserError(
                f"label {wanted} is out of range: this model has {self.classes} classes, 0 to {self.classes - 1}"
            )
        return number

    def check(self, config: SampleConfig) -> None:
        """Raise UserError where this model cannot be sampled so."""
        config.guidance.check()
        if config.guidance.scale != 1 and not self.guidable:
            why = "was trained with label dropout 0" if self.classes else "is unconditional"
            raise UserError(
                f"guidance {config.guidance.scale} needs a null class, and this model {why}; use guidance 1"
            )

    def sample(
        self,
        labels: Sequence[str | int] | None = None,
        *,
        guidance: float | GuidanceConfig | None = None,
        steps: int | None = None,
        sampler: str | None = None,
        precision: Literal["auto", "fp32", "bf16"] | None = None,
        seed: int = 0,
        count: int | None = None,
        batch: int = 64,
    ) -> np.ndarray:
        """Make images.

        Args:
            labels: class names or numbers, given out in turn; none: every class in turn.
            guidance: guidance scale, 1 is off; or a GuidanceConfig, with an interval or fewer channels.
            steps: sampling steps.
            sampler: ddpm, ddim, euler, heun or dpm-solver.
            precision: fp32, bf16, or auto: bf16 on a GPU.
            seed: image k of a seed is the same whatever the count and the batch.
            count: how many; as many as labels, or 16, by default.
            batch: how many at a time.

        Returns:
            uint8 (N, H, W, C).

        Raises:
            UserError: an unknown label or sampler, or guidance the model was not trained for.
        """
        from ditlab.pipelines.generate import generate

        config = self.defaults
        if isinstance(guidance, GuidanceConfig):
            config = replace(config, guidance=guidance)
        elif guidance is not None:
            config = replace(config, guidance=replace(config.guidance, scale=float(guidance)))
        config = replace(
            config,
            steps=config.steps if steps is None else steps,
            sampler=config.sampler if sampler is None else sampler,
            precision=config.precision if precision is None else precision,
        )
        if labels is not None:
            labels = [labels] if isinstance(labels, str | int) else list(labels)
        count = count if count is not None else len(labels or ()) or 16
        return np.concatenate(list(generate(self, labels, seed, count, config, batch)))

    def save(self, folder: Path, half: bool = False) -> None:
        """Write ``model.safetensors`` and ``model.json`` into ``folder``; a pretrained autoencoder is only referred to.

        Args:
            folder: where to.
            half: write weights in float16, half the bytes; they are float32 again when they are loaded.

        Raises:
            UserError: the disk is full or the folder cannot be written.
        """
        tensors = {f"network.{name}": tensor for name, tensor in self.network.state_dict().items()}
        for name, tensor in self.autoencoder.state_dict().items():
            if self.autoencoder.shipped or name in ("mean", "std"):
                tensors[f"autoencoder.{name}"] = tensor
        tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
        data = safetensors.torch.save({name: tensor.half() if half else tensor for name, tensor in tensors.items()})
        record = {
            "format": FORMAT,
            "network": {"config": to_record(self.network.config), "input": asdict(self.network.input)},
            "diffusion": asdict(self.diffusion),
            "autoencoder": self.autoencoder.record(),
            "pixels": self.pixels,
            "names": self.names,
            "sample": asdict(self.defaults),
            "facts": self.facts,
        }
        files.write_file(folder / RECORD, json.dumps(record, indent=2) + "\n")
        files.write_file(folder / WEIGHTS, data)

    @classmethod
    def load(cls, path: str | Path) -> Pipeline:
        """Read a run folder, a ``model.safetensors`` with its ``model.json`` beside it, or a shipped model by its name.

        Raises:
            UserError: nothing there, a damaged file, or weights of another architecture.
        """
        path = locate(path)
        folder = path.parent if path.suffix == ".safetensors" else path
        weights_file = path if path.suffix == ".safetensors" else path / WEIGHTS
        if not (folder / RECORD).exists() or not weights_file.exists():
            raise UserError(
                f"no model in {path}: expected a run folder with {WEIGHTS} and {RECORD}, or a shipped model "
                f"({', '.join(SHIPPED)})"
            )
        try:
            record = json.loads((folder / RECORD).read_text())
            tensors = safetensors.torch.load(weights_file.read_bytes())
        except (OSError, ValueError, safetensors.SafetensorError) as error:
            raise UserError(
                f"the model in {folder} cannot be read ({error}); sample another run or train it again"
            ) from error
        try:
            if record["format"] != FORMAT:
                raise UserError(
                    f"{folder / RECORD} has format {record['format']}; this version of ditlab reads format {FORMAT}"
                )
            network = build(from_record(record["network"]["config"]), NetworkInput(**record["network"]["input"]))
            diffusion = DiffusionConfig(**record["diffusion"])
            diffusion.check()
            guidance = GuidanceConfig(**record["sample"].pop("guidance"))
            defaults = SampleConfig(**record["sample"], guidance=guidance)
            autoencoder = restore(record["autoencoder"])
            pixels, names, facts = tuple(record["pixels"]), record["names"], record["facts"]
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            reason = f"no field {error}" if isinstance(error, KeyError) else str(error)
            raise UserError(f"{folder / RECORD} is not a model record of this version of ditlab ({reason})") from error
        load_weights(network, _within(tensors, "network."), weights_file)
        if autoencoder.shipped:
            load_weights(autoencoder, _within(tensors, "autoencoder."), weights_file)
        else:
            _load_statistics(autoencoder, _within(tensors, "autoencoder."), weights_file)
        return cls(network.eval(), diffusion, autoencoder.eval(), pixels, names, defaults, facts)


def _load_statistics(autoencoder: Autoencoder, tensors: dict[str, torch.Tensor], source: Path) -> None:
    """The mean and std of an autoencoder whose weights lie elsewhere."""
    channels = autoencoder.latent_channels
    if any(name not in tensors or tensors[name].numel() != channels for name in ("mean", "std")):
        raise UserError(f"{source} lacks the mean and std of its autoencoder's {channels} latent channels")
    autoencoder.set_statistics(tensors["mean"], tensors["std"])


def _within(tensors: dict[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
