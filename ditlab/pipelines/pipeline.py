"""A trained model with everything that sampling needs: conditions and seeds in, images out."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from ditlab.diffusion import (
    ClampedX0,
    ClassifierFreeGuidance,
    Denoiser,
    DiffusionConfig,
    Guidance,
    GuidanceConfig,
    Interpolated,
    State,
    Trajectory,
    sample,
)
from ditlab.encoders import Autoencoder, float_to_uint8
from ditlab.errors import UserError, nearest
from ditlab.models import NULL, Condition, Network
from ditlab.pipelines import model_file
from ditlab.pipelines.sampling import SampleConfig, Step, image_generator, image_generators, normal
from ditlab.runtime.device import check_compiler
from ditlab.runtime.distributed import ALONE, Processes

LABEL_STREAM = 2**31  # random stream of labels: noise has those of the images, 0, 1, ...
Labels = Sequence[str | int] | str | int | None
Generators = Sequence[torch.Generator]
Size = tuple[int, int]


class Pipeline:
    """A trained diffusion network, its process and its autoencoder.

    Attributes:
        denoiser: network, schedule and target.
        autoencoder: from latents to pixels.
        names: of the classes, in label order; empty where they have none.
        defaults: how it is sampled by default.
        facts: provenance, as the images it was trained on.
    """

    def __init__(
        self, network: Network, diffusion: DiffusionConfig, autoencoder: Autoencoder, names: Sequence[str] = (),
        defaults: SampleConfig | None = None, facts: dict[str, object] | None = None,
    ):  # fmt: skip
        self.denoiser = Denoiser(network, diffusion.build_schedule(), diffusion.target, diffusion.learned_variance)
        self.network, self.diffusion, self.autoencoder = network, diffusion, autoencoder
        self.names, self.defaults, self.facts = tuple(names), defaults or SampleConfig(), facts or {}
        self._prepared, self._compiled = None, False  # by ``prepare``

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of an image in pixels."""
        rows, columns = self.network.spec.latent.size[-2:]
        return rows * self.autoencoder.factor, columns * self.autoencoder.factor

    @property
    def pixels(self) -> tuple[int, int, int]:
        """An image's shape (C, H, W)."""
        return self.autoencoder.channels, *self.size

    @property
    def classes(self) -> int:
        """Number of classes; 0 if the network is unconditional."""
        return self.network.spec.classes

    @property
    def guidable(self) -> bool:
        """Whether guidance is possible: the network has classes and their null."""
        return self.classes > 0 and all(condition.null for condition in self.network.spec.conditions)

    @property
    def device(self) -> torch.device:
        """The network's device."""
        return next(self.network.parameters()).device

    def to(self, device: torch.device | str) -> Pipeline:
        """Move everything to a device."""
        self.denoiser.to(device)
        self.autoencoder.to(device)
        self._prepared, self._compiled = None, False
        return self

    def prepare(self, config: SampleConfig, compiled: bool = False) -> Pipeline:
        """Prepare for many batches with one configuration: the weights of now are cast to its precision once.

        ``compiled``: blocks are compiled, a last batch is filled up to the size of the others. UserError without a compiler.
        """
        if compiled:
            check_compiler(self.device, "no --compile")
        self._prepared, self._compiled = self.denoiser.prepared(config.bf16_on(self.device)), compiled
        if compiled:
            for block in self._prepared.network.block_list():
                block.compile(dynamic=False)
        return self

    def label(self, wanted: str | int) -> int:
        """The index of a label given by name, in any case, or by number; UserError if it is unknown or out of range."""
        if not self.classes:
            raise UserError(f"label {wanted!r}: this model is unconditional, it has no labels")
        if isinstance(wanted, str):  # names first, since names may be numbers; exact case before any case
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

    def label_indices(self, labels: Labels, count: int) -> Tensor:
        """Labels of images 0 .. count - 1, int64 (count,): those given, or every class, in turn."""
        chosen = self._chosen(labels) or [NULL]
        return torch.tensor([chosen[k % len(chosen)] for k in range(count)], dtype=torch.int64)

    def random_labels(self, labels: Labels, count: int, seed: int) -> list[int]:
        """Labels of images 0 .. count - 1, each drawn uniformly from those given, or from all classes, as in the paper's code.

        The label of image k depends on the seed alone, not on the count.
        """
        chosen = self._chosen(labels)
        random = np.random.default_rng([seed, LABEL_STREAM])
        return [chosen[k] for k in random.integers(len(chosen), size=count)] if chosen else []

    def _chosen(self, labels: Labels) -> list[int]:
        """Indices of the labels given, or of all classes; UserError for an unknown label."""
        given = [labels] if isinstance(labels, str | int) else list(labels or ())
        return [self.label(label) for label in given] or list(range(self.classes))

    def check(self, config: SampleConfig) -> None:
        """Raise UserError where this model cannot be sampled with ``config``."""
        config.guidance.check()
        if config.guidance.scale != 1 and not self.guidable:
            why = "was trained with condition dropout 0" if self.classes else "is unconditional"
            raise UserError(
                f"guidance {config.guidance.scale} needs a null class, and this model {why}; use guidance 1"
            )

    def guidance(self, config: SampleConfig) -> Guidance:
        """The guidance of ``config``, with predicted data clamped to its range where it has one."""
        self.check(config)
        guidance: Guidance = ClassifierFreeGuidance(config.guidance)
        return guidance if self.autoencoder.bounds is None else ClampedX0(guidance, *self.autoencoder.bounds)

    def latent_shape(self, size: Size | None = None) -> tuple[int, ...]:
        """(c, h, w) of a latent of images of ``size`` (H, W), by default the training size; UserError where it does not fit."""
        if size is None or tuple(size) == self.size:
            return self.network.spec.latent.shape
        if not self.network.supports.tokens:
            raise UserError(f"this model makes images of {self.size[0]}x{self.size[1]} only; a DiT makes other sizes")
        return self.autoencoder.latent_shape(size)

    def trajectory(
        self, condition: Condition, generators: Generators, config: SampleConfig, size: Size | None = None
    ) -> Trajectory:
        """A sampling of one image a generator, under a condition of as many samples; UserError where that is impossible."""
        shape, device = self.latent_shape(size), self.device

        def noise() -> Tensor:
            return normal(generators, shape, device)

        guidance, schedule = self.guidance(config), self.denoiser.schedule
        condition = condition.to(device)
        return Trajectory(config.sampler, schedule, config.steps, guidance, condition, noise(), noise)

    def interpolation(
        self, first: tuple[int, int], last: tuple[int, int], count: int, config: SampleConfig
    ) -> Trajectory:
        """A sampling of ``count`` images between two, each given by its seed and its label (-1: none).

        Noise is interpolated on a circle, on which its variance stays 1 (Song et al. 2020, section 5.3), from image 0 of
        one seed to image 0 of the other; where labels differ, the predictions under both are mixed.
        """
        if count < 2:
            raise UserError(f"{count} images between two; 2 or more, including both ends")
        ends, shape, device = [image_generator(seed, 0) for seed, _ in (first, last)], self.latent_shape(), self.device
        weight = torch.linspace(0, 1, count).view(-1, 1, 1, 1)

        def noise() -> Tensor:
            one, other = (torch.randn(shape, generator=generator) for generator in ends)
            if first[0] == last[0]:
                return one.expand(count, *shape).to(device)
            angle = weight * (torch.pi / 2)
            return (angle.cos() * one + angle.sin() * other).to(device)

        guidance, schedule = self.guidance(config), self.denoiser.schedule
        conditions = [Condition.of_labels(torch.full((count,), label, device=device)) for _, label in (first, last)]
        if first[1] != last[1]:
            guidance = Interpolated(guidance, conditions[1], weight.to(device))
        return Trajectory(config.sampler, schedule, config.steps, guidance, conditions[0], noise(), noise)

    @torch.inference_mode()
    def run(self, trajectory: Trajectory, config: SampleConfig) -> Iterator[State]:
        """Every step of a sampling, in the precision of ``config``; the last state's ``x_s`` is the latent."""
        denoiser, bf16 = self._prepared, config.bf16_on(self.device)
        if denoiser is None or denoiser.bf16 != bf16:
            denoiser = self.denoiser.cast(bf16)
        yield from sample(trajectory, denoiser)

    def denoise(self, labels: Tensor, seed: int, first: int, config: SampleConfig) -> Iterator[State]:
        """Denoise images ``first``, first + 1, .. of ``seed``, one for each of ``labels`` (N,), step by step."""
        generators = image_generators(seed, first, len(labels))
        yield from self.run(self.trajectory(Condition.of_labels(labels), generators, config), config)

    @torch.inference_mode()
    def decode(self, latents: Tensor) -> np.ndarray:
        """Latents (N, c, h, w) as images uint8 (N, H, W, C)."""
        return float_to_uint8(self.autoencoder.decode(latents)).permute(0, 2, 3, 1).cpu().numpy()

    def batches(
        self, labels: Labels, seed: int, count: int, config: SampleConfig, batch: int = 64,
        processes: Processes = ALONE, size: Size | None = None, starts: Iterable[int] | None = None,
        callback: Callable[[Step], None] = lambda step: None,
    ) -> Iterator[np.ndarray]:  # fmt: skip
        """Images 0 .. count - 1 of ``seed``, in batches uint8 (N, H, W, C); each process makes every world-size-th batch.

        With ``starts``, only those that start at these images. A batch too large for the GPU's memory is made in halves.
        """
        if count < 1 or batch < 1:
            raise UserError(f"count {count} and batch {batch} must be 1 or more")
        indices, part = self.label_indices(labels, count), batch
        for first in range(processes.rank * batch, count, processes.size * batch) if starts is None else starts:
            stop, made = min(first + batch, count), []
            while first < stop:
                wanted = min(part, stop - first)
                chosen = indices[first : first + wanted]
                if self._compiled and wanted < part <= count:
                    chosen = torch.cat([chosen, chosen[-1:].expand(part - wanted)])
                try:
                    generators = image_generators(seed, first, len(chosen))
                    trajectory = self.trajectory(Condition.of_labels(chosen), generators, config, size)
                    made.append(self._finish(trajectory, config, first, wanted, callback))
                    first += wanted
                except torch.OutOfMemoryError:
                    if part == 1:
                        raise
                    part = (part + 1) // 2
            yield np.concatenate(made)

    @torch.inference_mode()
    def _finish(
        self, trajectory: Trajectory, config: SampleConfig, first: int, wanted: int, callback: Callable[[Step], None]
    ) -> np.ndarray:
        for index, state in enumerate(self.run(trajectory, config), 1):
            callback(Step(index, config.steps, first, state.x_s[:wanted]))
        return self.decode(trajectory.x)[:wanted]

    def sample(
        self,
        labels: Labels = None,
        *,
        guidance: float | GuidanceConfig | None = None,
        steps: int | None = None,
        sampler: str | None = None,
        precision: Literal["auto", "fp32", "bf16"] | None = None,
        seed: int = 0,
        count: int | None = None,
        batch: int = 64,
        size: Size | None = None,
    ) -> np.ndarray:
        """Make images.

        Args:
            labels: class names or numbers, used in turn; by default every class in turn.
            guidance: guidance scale, 1 is off; or a GuidanceConfig, with an interval or fewer channels.
            steps: sampling steps.
            sampler: ddpm, ddim, euler, heun or dpm-solver.
            precision: fp32, bf16, or auto: bf16 on a GPU.
            seed: image k of a seed does not depend on the count and the batch.
            count: number of images; by default as many as labels, or 16.
            batch: images at a time.
            size: (H, W) in pixels; by default the size the model was trained at.

        Returns:
            uint8 (N, H, W, C).

        Raises:
            UserError: an unknown label or sampler, guidance the model was not trained for, or an impossible size.
        """
        config = self.defaults
        if isinstance(guidance, GuidanceConfig):
            config = replace(config, guidance=guidance)
        elif guidance is not None:
            config = replace(config, guidance=replace(config.guidance, scale=float(guidance)))
        given = {"steps": steps, "sampler": sampler, "precision": precision}
        config = replace(config, **{name: value for name, value in given.items() if value is not None})  # type: ignore[arg-type]
        labels = [] if labels is None else [labels] if isinstance(labels, str | int) else list(labels)
        count = count if count is not None else len(labels) or 16
        return np.concatenate(list(self.batches(labels, seed, count, config, batch, size=size)))

    def save(self, folder: Path, half: bool = False) -> None:
        """Write ``model.safetensors`` and ``model.json``, see ``model_file.save``."""
        parts = model_file.ModelParts(
            self.network, self.diffusion, self.autoencoder, self.names, self.defaults, self.facts
        )
        model_file.save(parts, folder, half)

    @classmethod
    def load(cls, path: str | Path) -> Pipeline:
        """Read a run folder, a ``model.safetensors``, or a shipped model by its name, see ``model_file.load``."""
        parts = model_file.load(path)
        return cls(parts.network, parts.process, parts.autoencoder, parts.names, parts.defaults, parts.facts)
