"""Seeds to images. Image k of a seed has a random generator of its own, whatever batch or process it is made in."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from itertools import zip_longest
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from ditlab.diffusion import Between, Bounded, ClassifierFree, State
from ditlab.diffusion import sample as run_sampler
from ditlab.diffusion.denoiser import Denoise
from ditlab.diffusion.samplers import Noise
from ditlab.encoders import float_to_uint8
from ditlab.errors import UserError
from ditlab.models import Condition
from ditlab.pipelines.pipeline import Pipeline, SampleConfig
from ditlab.runtime.distributed import ALONE, Processes

LABEL_STREAM = 2**31  # random stream of labels: noise has those of the images, 0, 1, ...
T = TypeVar("T")


def image_generator(seed: int, index: int) -> torch.Generator:
    """The generator of image ``index`` of ``seed``: everything random about that image comes from it, in order.

    Raises:
        UserError: a negative seed.
    """
    if seed < 0:
        raise UserError(f"seed {seed} is negative; seeds are 0 or more")
    state = np.random.SeedSequence([seed, index]).generate_state(1, np.uint64)
    return torch.Generator().manual_seed(int(state[0]))


def label_indices(model: Pipeline, labels: Sequence[str | int] | None, count: int) -> Tensor:
    """Labels of images 0 .. count - 1, int64 (count,): those given, or every class, in turn.

    Raises:
        UserError: an unknown label, or labels for an unconditional model.
    """
    given = [labels] if isinstance(labels, str | int) else [] if labels is None else list(labels)
    chosen = [model.label(label) for label in given] or list(range(model.classes)) or [-1]
    return torch.tensor([chosen[k % len(chosen)] for k in range(count)], dtype=torch.int64)


def random_labels(model: Pipeline, labels: Sequence[str | int] | None, count: int, seed: int) -> list[int]:
    """Labels of images 0 .. count - 1, each drawn uniformly from those given, or from all classes, as the paper's scripts do.

    The label of image k depends on the seed alone, not on the count.

    Raises:
        UserError: an unknown label, or labels for an unconditional model.
    """
    given = [model.label(label) for label in labels or ()] or list(range(model.classes))
    if not given:
        return []
    random = np.random.default_rng([seed, LABEL_STREAM])
    return [given[k] for k in random.integers(len(given), size=count)]


def denoising(model: Pipeline, labels: Tensor, seed: int, first: int, config: SampleConfig) -> Iterator[State]:
    """Denoise images ``first``, first + 1, .. of ``seed``, one for each of ``labels`` (N,), step by step.

    Yields:
        The state after each step, latents inside.

    Raises:
        UserError: the model cannot be sampled so.
    """
    generators = [image_generator(seed, first + k) for k in range(len(labels))]
    return denoising_each(model, labels, generators, config)


@torch.inference_mode()  # around the body it would leak into the caller's code between steps
def denoising_each(
    model: Pipeline, labels: Tensor, generators: Sequence[torch.Generator], config: SampleConfig
) -> Iterator[State]:
    """The same of images of any seeds, each given by its label, (N,) in all, and the generator of its noise."""
    shape = model.autoencoder.latent_shape(model.pixels[1:])

    def noise() -> Tensor:
        return torch.stack([torch.randn(shape, generator=generator) for generator in generators]).to(model.device)

    yield from _steps(model, denoiser(model, config), Condition(labels.to(model.device)), noise, config)


@torch.inference_mode()
def interpolating(
    model: Pipeline, first: tuple[int, int], last: tuple[int, int], count: int, config: SampleConfig
) -> Iterator[State]:
    """Denoise ``count`` images between two, each given by its seed and its label (-1: none), step by step.

    All noise is turned from that of the first one's image 0 to that of the last one's, on a circle, on which it stays as
    strong (Song et al. 2020, section 5.3); where labels differ, the predictions under both are mixed.

    Yields:
        The state after each step, latents inside.

    Raises:
        UserError: the model cannot be sampled so, or fewer than two images.
    """
    if count < 2:
        raise UserError(f"{count} images between two; 2 or more, both ends among them")
    ends = [image_generator(seed, 0) for seed, _ in (first, last)]
    shape = model.autoencoder.latent_shape(model.pixels[1:])
    along = torch.linspace(0, 1, count).view(-1, 1, 1, 1)

    def noise() -> Tensor:
        one, other = (torch.randn(shape, generator=generator) for generator in ends)
        if first[0] == last[0]:
            return one.expand(count, *shape).to(model.device)
        angle = along * (torch.pi / 2)
        return (angle.cos() * one + angle.sin() * other).to(model.device)

    denoise = denoiser(model, config)
    conditions = [Condition(torch.full((count,), label, device=model.device)) for _, label in (first, last)]
    if first[1] != last[1]:
        denoise = Between(denoise, conditions[1], along.to(model.device))
    yield from _steps(model, denoise, conditions[0], noise, config)


def denoiser(model: Pipeline, config: SampleConfig) -> Denoise:
    """The model's denoiser as it is sampled: guided, and within the range of its data where these have one.

    Raises:
        UserError: the model cannot be sampled so.
    """
    model.check(config)
    denoise: Denoise = ClassifierFree(model.denoiser.cast(config.bf16_on(model.device)), config.guidance)
    if model.autoencoder.bounds is not None:
        denoise = Bounded(denoise, *model.autoencoder.bounds)
    return denoise


def _steps(
    model: Pipeline, denoise: Denoise, condition: Condition, noise: Noise, config: SampleConfig
) -> Iterator[State]:
    schedule = model.denoiser.schedule
    yield from run_sampler(denoise, schedule, noise(), condition, config.sampler, config.steps, noise)


def to_images(model: Pipeline, latents: Tensor) -> np.ndarray:
    """Latents (N, c, h, w) as images uint8 (N, H, W, C)."""
    with torch.inference_mode():
        pixels = model.autoencoder.decode(latents)
    return float_to_uint8(pixels).permute(0, 2, 3, 1).cpu().numpy()


def generate(
    model: Pipeline,
    labels: Sequence[str | int] | None,
    seed: int,
    count: int,
    config: SampleConfig,
    batch: int = 64,
    processes: Processes = ALONE,
    starts: Iterable[int] | None = None,
) -> Iterator[np.ndarray]:
    """Images 0 .. count - 1 of ``seed``, in batches uint8 (N, H, W, C); of many processes each makes every size-th batch.

    With ``starts``, only the batches whose first images these are. A batch that does not fit in the GPU's memory is made in
    halves, and so are those after it.

    Raises:
        UserError: an unknown label or sampler, or guidance the model was not trained for.
    """
    if count < 1 or batch < 1:
        raise UserError(f"count {count} and batch {batch} must be 1 or more")
    indices, part = label_indices(model, labels, count), batch
    for first in range(processes.rank * batch, count, processes.size * batch) if starts is None else starts:
        stop, made = min(first + batch, count), []
        while first < stop:
            here = indices[first : min(first + part, stop)]
            try:
                (last,) = deque(denoising(model, here, seed, first, config), maxlen=1)
                made.append(to_images(model, last.x))
                first += len(here)
            except torch.OutOfMemoryError:
                if part == 1:
                    raise
                part = (part + 1) // 2
        yield np.concatenate(made)


def gather(made: Iterator[np.ndarray], processes: Processes) -> np.ndarray:
    """What ``generate`` makes in all processes, in order, in the first one; nothing (0, ...) in the others."""
    batches = list(made)
    everyone = processes.gather(batches)
    if not processes.is_main:
        return np.empty(0, np.uint8)
    return np.concatenate(in_order(everyone))


def in_order(everyone: Sequence[Sequence[T]]) -> list[T]:
    """What every process made of its every size-th batch, in the order of the batches."""
    return [made for turn in zip_longest(*everyone) for made in turn if made is not None]
