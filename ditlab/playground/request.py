"""Requests to a batcher: the images of a seed, or an interpolation between two images."""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from functools import reduce

import numpy as np
from torch import Tensor

from ditlab.diffusion import State, Trajectory
from ditlab.models import Condition
from ditlab.pipelines import Pipeline, SampleConfig, image_generators


class QueueFull(Exception):  # noqa: N818 - a state of the server, not an error in it
    """The queue of a model is full, or the server is shutting down; retry after ``retry_after`` seconds."""

    def __init__(self, retry_after: float):
        super().__init__(f"too many requests; retry in {retry_after:.0f} s")
        self.retry_after = retry_after


class Cancelled(Exception):  # noqa: N818 - the client's decision
    """A request was cancelled before its images were finished."""


class TimedOut(Exception):  # noqa: N818 - a limit, not an error
    """A request did not finish within its timeout."""


@dataclass(eq=False)
class Request:
    """A request for images, and a future for its result.

    Attributes:
        labels: class indices, int64 (N,), N at least 1; -1 is unconditional. Of a model of prompts, indices of ``prompts``.
        seed: image k of a seed is the same in any batch.
        config: sampler, steps and guidance; the precision is the server's.
        prompts: different texts, which ``labels`` are indices of; empty for a model of labels.
        notes: what of the prompts has no effect, as lines for the client.
        timeout: seconds after which the request fails, waiting included.
        on_step: called with the state after each step, in the compute thread.
        images: the result, uint8 (N, H, W, C).
    """

    labels: Tensor
    seed: int
    config: SampleConfig
    timeout: float = float("inf")
    prompts: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    on_step: Callable[[State], None] | None = None
    images: Future[np.ndarray] = field(default_factory=Future)
    created: float = field(default_factory=time.monotonic)
    cancelled: bool = False

    def cancel(self) -> None:
        """End the request at its next step, or before its first; no effect on a finished request."""
        self.cancelled = True

    def check(self) -> None:
        """Raise Cancelled or TimedOut if the request must not continue."""
        if self.cancelled:
            raise Cancelled
        if time.monotonic() - self.created > self.timeout:
            raise TimedOut(f"not finished within {self.timeout:g} s")

    @property
    def group(self) -> Hashable:
        """Requests with equal values can share a trajectory."""
        return self.config

    @property
    def captions(self) -> list[str]:
        """The prompt of each image; empty for a model of labels."""
        return [self.prompts[k] for k in self.labels.tolist()] if self.prompts else []

    @property
    def first(self) -> tuple[int, int | str]:
        """Seed, and label or prompt, of the first image."""
        return self.seed, self.captions[0] if self.prompts else int(self.labels[0])

    def condition(self, model: Pipeline) -> Condition:
        """The condition of the images; encodes prompts."""
        if not self.prompts:
            return Condition.of_labels(self.labels)
        return model.condition(self.prompts, len(self.prompts)).select(self.labels)

    def trajectory(self, model: Pipeline, others: Sequence[Request]) -> Trajectory:
        """The sampling of the images of this request, followed by those of others of its group."""
        requests = (self, *others)
        generators = [each for request in requests for each in image_generators(request.seed, 0, len(request.labels))]
        condition = reduce(Condition.cat, [request.condition(model) for request in requests])
        return model.trajectory(condition, generators, self.config)


@dataclass(eq=False)
class Interpolation(Request):
    """A request for an interpolation from image 0 of ``seed``, with the first label or prompt, to image 0 of another seed.

    Attributes:
        end: seed, and label or prompt, of the last image.
    """

    end: tuple[int, int | str] = (0, -1)

    @property
    def group(self) -> Hashable:
        """An interpolation has a trajectory of its own."""
        return self

    def trajectory(self, model: Pipeline, others: Sequence[Request]) -> Trajectory:
        """The sampling of the interpolation."""
        assert not others
        return model.interpolation(self.first, self.end, len(self.labels), self.config)
