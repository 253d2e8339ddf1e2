"""Sampling of a trained model: labels and seeds in, images out."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Literal, Never, overload

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ditlab.data.given import to_uint8
from ditlab.diffusion import GuidanceConfig, Interpolated, State, Trajectory, sample
from ditlab.encoders import float_to_uint8, uint8_to_float
from ditlab.errors import UserError
from ditlab.models import Condition
from ditlab.pipelines.images import ImageArray, Step, to_pil
from ditlab.pipelines.model import Labels, Model, Size
from ditlab.pipelines.sampling import SampleConfig, image_generator, image_generators, normal, refuse_unknown
from ditlab.runtime.device import check_compiler
from ditlab.runtime.distributed import ALONE, Processes

Generators = Sequence[torch.Generator]
Precision = Literal["auto", "fp32", "bf16"]
Callback = Callable[[Step], object]
ENCODED = 64  # images encoded at a time


class Pipeline(Model):
    """A trained model that makes images; ``ditlab.load`` and ``ditlab.train`` return one.

    ``sample``, ``denoise``, ``encode`` and ``decode`` are what most programs need; the other methods are their parts. All
    raise UserError for arguments that are not possible, print nothing, and may be called from any thread.
    """

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

    def trajectory(
        self, condition: Condition, generators: Generators, config: SampleConfig, size: Size | None = None,
        start: Tensor | None = None,
    ) -> Trajectory:  # fmt: skip
        """A sampling of one image a generator, under a condition of as many samples; UserError where that is impossible.

        ``start`` (N, c, h, w) replaces the first noise of the generators.
        """
        shape, device = self.latent_shape(size), self.device

        def noise() -> Tensor:
            return normal(generators, shape, device)

        guidance, schedule = self.guidance(config), self.denoiser.schedule
        first, condition = noise(), condition.to(device)
        x = first if start is None else start.to(first)
        grid = self.time_grid(config, shape)
        return Trajectory(config.sampler, schedule, config.steps, guidance, condition, x, noise, grid)

    def interpolation(
        self, first: tuple[int, int | str], last: tuple[int, int | str], count: int, config: SampleConfig
    ) -> Trajectory:
        """A sampling of ``count`` images between two, each given by its seed and its label (-1: none) or prompt.

        Noise is interpolated on a circle, on which its variance stays 1 (Song et al. 2020, section 5.3), from image 0 of
        one seed to image 0 of the other; where labels or prompts differ, the predictions under both are mixed.
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
        conditions = [
            (Condition.of_labels(torch.tensor([given])) if isinstance(given, int) else self.condition([given], 1))
            .select(torch.zeros(count, dtype=torch.int64))
            .to(device)
            for _, given in (first, last)
        ]
        if first[1] != last[1]:
            guidance = Interpolated(guidance, conditions[1], weight.to(device))
        grid = self.time_grid(config, shape)
        return Trajectory(config.sampler, schedule, config.steps, guidance, conditions[0], noise(), noise, grid)

    @torch.inference_mode()
    def run(self, trajectory: Trajectory, config: SampleConfig) -> Iterator[State]:
        """Every step of a sampling, in the precision of ``config``; the last state's ``x_s`` is the latent."""
        denoiser, bf16 = self._prepared, config.bf16_on(self.device)
        if denoiser is None or denoiser.bf16 != bf16:
            denoiser = self.denoiser.cast(bf16)
        yield from sample(trajectory, denoiser)

    def states(self, condition: Condition, seed: int, first: int, config: SampleConfig) -> Iterator[State]:
        """Denoise images ``first``, first + 1, .. of ``seed``, one for each sample of a condition, step by step."""
        generators = image_generators(seed, first, condition.count)
        yield from self.run(self.trajectory(condition, generators, config), config)

    def batches(
        self, labels: Labels, seed: int, count: int, config: SampleConfig, batch: int = 64,
        processes: Processes = ALONE, size: Size | None = None, starts: Iterable[int] | None = None,
        noise: Tensor | None = None, callback: Callback | None = None,
    ) -> Iterator[np.ndarray]:  # fmt: skip
        """Images 0 .. count - 1 of ``seed``, in batches uint8 (N, H, W, C); each process makes every world-size-th batch.

        ``labels`` are labels or prompts, used in turn.
        With ``starts``, only the batches whose first images these are. A batch that does not fit in the GPU's memory is
        made in halves, and so are those after it. ``noise`` (count, c, h, w) replaces the images' own; ``callback`` gets
        every step.
        """
        if count < 1 or batch < 1:
            raise UserError(f"count {count} and batch {batch} must be 1 or more")
        turn, part = self.turn(labels), batch
        every = range(processes.rank * batch, count, processes.size * batch)
        for first in every if starts is None else starts:
            stop, made = min(first + batch, count), []
            while first < stop:
                wanted = min(part, stop - first)
                rows = torch.arange(first, first + wanted)
                if self._compiled and wanted < part <= count:
                    rows = torch.cat([rows, rows[-1:].expand(part - wanted)])
                try:
                    generators = image_generators(seed, first, len(rows))
                    begin = None if noise is None else noise[rows]
                    trajectory = self.trajectory(turn.select(rows % turn.count), generators, config, size, begin)
                    made.append(self._finish(trajectory, config, first, wanted, callback))
                    first += wanted
                except torch.OutOfMemoryError:
                    if part == 1:
                        raise
                    part = (part + 1) // 2
            yield np.concatenate(made)

    def _finish(
        self, trajectory: Trajectory, config: SampleConfig, first: int, wanted: int, callback: Callback | None
    ) -> np.ndarray:
        """The first ``wanted`` images of a sampling, uint8 (N, H, W, C)."""
        states = self.run(trajectory, config)
        if callback is None:
            (last,) = deque(states, maxlen=1)
            return self.decode(last.x_s)[:wanted]
        step = None
        for step in self._steps(states, config, first, wanted):
            callback(step)
        assert step is not None
        return step.images

    def _steps(self, states: Iterable[State], config: SampleConfig, first: int, wanted: int) -> Iterator[Step]:
        for index, state in enumerate(states, 1):
            yield Step(index, config.steps, state.s.t, first, state.x_s[:wanted], state.x0[:wanted], self.decode)

    def denoise(
        self,
        labels: Labels = None,
        *,
        prompts: Sequence[str] | str | None = None,
        negative: str | None = None,
        guidance: float | GuidanceConfig | None = None,
        steps: int | None = None,
        sampler: str | None = None,
        precision: Precision | None = None,
        seed: int = 0,
        count: int | None = None,
        size: Size | None = None,
        noise: np.ndarray | Tensor | None = None,
        **unknown: Never,
    ) -> Iterator[Step]:
        """Make images step by step: an iterator over the steps of one batch.

        Each ``Step`` has the current sample and the predicted clean one. The images of the last are those that ``sample``
        returns for the same arguments, which are described there.
        """
        refuse_unknown(self.denoise, unknown)
        config = self.defaults.changed(guidance, steps, sampler, precision, negative)
        chosen, count, start = self._request(self.given(labels, prompts), count, size, noise)
        trajectory = self.trajectory(
            self.condition(chosen, count), image_generators(seed, 0, count), config, size, start
        )
        return self._steps(self.run(trajectory, config), config, 0, count)

    @overload
    def sample(
        self, labels: Labels = None, *, prompts: Sequence[str] | str | None = None, negative: str | None = None,
        guidance: float | GuidanceConfig | None = None, steps: int | None = None,
        sampler: str | None = None, precision: Precision | None = None, seed: int = 0, count: int | None = None,
        batch: int = 64, size: Size | None = None, noise: np.ndarray | Tensor | None = None,
        callback: Callback | None = None, return_type: Literal["numpy"] = "numpy", **unknown: Never,
    ) -> ImageArray: ...  # fmt: skip

    @overload
    def sample(
        self, labels: Labels = None, *, prompts: Sequence[str] | str | None = None, negative: str | None = None,
        guidance: float | GuidanceConfig | None = None, steps: int | None = None,
        sampler: str | None = None, precision: Precision | None = None, seed: int = 0, count: int | None = None,
        batch: int = 64, size: Size | None = None, noise: np.ndarray | Tensor | None = None,
        callback: Callback | None = None, return_type: Literal["pil"], **unknown: Never,
    ) -> list[Image.Image]: ...  # fmt: skip

    def sample(
        self,
        labels: Labels = None,
        *,
        prompts: Sequence[str] | str | None = None,
        negative: str | None = None,
        guidance: float | GuidanceConfig | None = None,
        steps: int | None = None,
        sampler: str | None = None,
        precision: Precision | None = None,
        seed: int = 0,
        count: int | None = None,
        batch: int = 64,
        size: Size | None = None,
        noise: np.ndarray | Tensor | None = None,
        callback: Callback | None = None,
        return_type: Literal["numpy", "pil"] = "numpy",
        **unknown: Never,
    ) -> ImageArray | list[Image.Image]:
        """Make images.

        Args:
            labels: class names or numbers, used in turn; by default every class in turn.
            prompts: texts, used in turn; by default the model's own examples. To a model of labels, texts that name one class
                each, as "a red sneaker" does, or lists of classes separated by commas.
            negative: text, or class, to guide away from.
            guidance: guidance scale, 1 is off; or a GuidanceConfig, with an interval or fewer channels.
            steps: sampling steps.
            sampler: ddpm, ddim, euler, heun or dpm-solver.
            precision: fp32, bf16, or auto: bf16 on a GPU.
            seed: image k of a seed does not depend on the count and the batch.
            count: number of images; by default as many as noise or labels, or 16.
            batch: images at a time.
            size: (H, W) in pixels; by default the size the model was trained at.
            noise: what sampling starts from, standard normal (N, c, h, w) in latents; by default drawn from the seed.
            callback: called after every step with its ``Step``, for a progress bar or a preview.
            return_type: numpy, or pil for a list of Pillow images.
            unknown: other names, which are refused with the nearest.

        Returns:
            uint8 (N, H, W, C), or a list of N Pillow images.

        Raises:
            UserError: an unknown argument, label or sampler, guidance the model was not trained for, noise of another
                shape, or an impossible size.
        """
        refuse_unknown(self.sample, unknown)
        if return_type not in ("numpy", "pil"):
            raise UserError(f"unknown return_type {return_type!r}; known: numpy, pil")
        config = self.defaults.changed(guidance, steps, sampler, precision, negative)
        chosen, count, start = self._request(self.given(labels, prompts), count, size, noise)
        made = self.batches(chosen, seed, count, config, batch, size=size, noise=start, callback=callback)
        images = np.concatenate(list(made))
        return to_pil(images) if return_type == "pil" else images.view(ImageArray)

    def _request(
        self, labels: Any, count: int | None, size: Size | None, noise: np.ndarray | Tensor | None
    ) -> tuple[list[str | int], int, Tensor | None]:
        """Labels as a list, the number of images, and the noise as a tensor; UserError where they do not fit."""
        single = isinstance(labels, str | int | np.integer)
        chosen: list[str | int] = [] if labels is None else [labels] if single else list(labels)  # type: ignore[list-item]
        if count is not None and count < 1:
            raise UserError(f"count {count} must be 1 or more")
        if noise is None:
            return chosen, len(chosen) or 16 if count is None else count, None
        start = torch.as_tensor(noise).float()
        shape = self.latent_shape(size)
        if start.shape[1:] != shape or not len(start) or count not in (None, len(start)):
            expected = ", ".join(map(str, (count or "N", *shape)))
            raise UserError(f"noise of shape {tuple(start.shape)}; this model starts from ({expected})")
        if not start.isfinite().all():
            raise UserError("noise has values that are NaN or Inf; give standard normal numbers")
        return chosen, len(start), start

    @torch.inference_mode()
    def encode(self, images: Any) -> Tensor:
        """Latents (N, c, h, w), on the model's device, of images: the posterior's mean, normalised as in training.

        Args:
            images: uint8 or floats from 0 to 1, (N, H, W) or (N, H, W, C); a list of Pillow images; or clips uint8
                (N, F, H, W, C).

        Raises:
            UserError: other images, another number of channels, or a size that the autoencoder does not divide.
        """
        clips = isinstance(images, np.ndarray) and images.dtype == np.uint8 and images.ndim == 5
        pixels = images if clips else to_uint8(images)
        if pixels.shape[-1] != self.autoencoder.channels:
            raise UserError(f"images of {pixels.shape[-1]} channels; this model has {self.autoencoder.channels}")
        shape, latents = self.autoencoder.latent_shape(pixels.shape[1:-1]), []
        for start in range(0, len(pixels), ENCODED):
            x = uint8_to_float(np.moveaxis(pixels[start : start + ENCODED], -1, 1), self.device)
            latents.append(self.autoencoder.latent(self.autoencoder.encode(x), x.new_zeros(len(x), *shape)))
        return torch.cat(latents)

    @torch.inference_mode()
    def decode(self, latents: np.ndarray | Tensor) -> ImageArray:
        """Latents (N, c, *size) as images uint8 (N, H, W, C) or clips (N, F, H, W, C); UserError for another shape."""
        z = torch.as_tensor(latents, device=self.device)
        axes = self.network.spec.latent.size
        if z.dim() != 2 + len(axes) or z.shape[1] != self.autoencoder.latent_channels:
            expected = f"(N, {self.autoencoder.latent_channels}, {', '.join(('f', 'h', 'w')[-len(axes) :])})"
            raise UserError(f"latents of shape {tuple(z.shape)}; this model's are {expected}")
        images = float_to_uint8(self.autoencoder.decode(z.float())).movedim(1, -1).cpu().numpy()
        return images.view(ImageArray)
