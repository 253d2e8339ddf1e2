"""What is asked of a batcher: images of a label, a seed and a configuration, or those between two."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from ditlab.diffusion import State
from ditlab.pipelines import Pipeline, SampleConfig, interpolating
from ditlab.pipelines.generate import denoising_each, image_generator


class Busy(Exception):  # noqa: N818 - the server's state, not an error of its
    """Too many requests are waiting; ``seconds`` is when another try makes sense."""

    def __init__(self, seconds: float):
        super().__init__(f"too many requests; try again in {seconds:.0f} s")
        self.seconds = seconds


class Cancelled(Exception):  # noqa: N818 - it was asked for
    """A request was given up before it was done."""


class Late(Exception):  # noqa: N818 - the request's time was up
    """A request was not done within its time."""


@dataclass(eq=False)
class Request:
    """Images to be made.

    Attributes:
        labels: of each image, int64 (N,); N at least 1.
        seed: image k of it is the same in whatever company.
        config: how; its precision is the server's.
        seconds: after which it is given up, waiting included.
        watch: told the state of each step, latents inside, in the request's own thread.
        images: uint8 (N, H, W, C), once they are made.
    """

    labels: Tensor
    seed: int
    config: SampleConfig
    seconds: float = float("inf")
    watch: Callable[[State], None] | None = None
    images: Future[np.ndarray] = field(default_factory=Future)
    began: float = field(default_factory=time.monotonic)
    given_up: bool = False

    def give_up(self) -> None:
        """Stop it at its next step, or before it begins."""
        self.given_up = True

    def check(self) -> None:
        """Raise Cancelled or Late where it should not go on."""
        if self.given_up:
            raise Cancelled
        if time.monotonic() - self.began > self.seconds:
            raise Late(f"not done within {self.seconds:g} s")


@dataclass(eq=False)
class Interpolation(Request):
    """Images from the first image of ``seed``, under the first label, to another's, both among them.

    Attributes:
        last: seed and label of the other end.
    """

    last: tuple[int, int] = (0, -1)


def denoised(model: Pipeline, requests: Sequence[Request]) -> Iterator[State]:
    """The denoising of requests of one configuration, one after the other in each state; interpolations come alone."""
    first = requests[0]
    if isinstance(first, Interpolation):
        return interpolating(model, (first.seed, int(first.labels[0])), first.last, len(first.labels), first.config)
    generators = [image_generator(request.seed, k) for request in requests for k in range(len(request.labels))]
    return denoising_each(model, torch.cat([request.labels for request in requests]), generators, first.config)


def rows(state: State, start: int, count: int) -> State:
    """Some images of a state."""
    before, x0, x = (tensor[start : start + count] for tensor in (state.before, state.x0, state.x))
    return State(before, x0, x, state.here, state.there)
