"""Requests denoised together: one call of the network for all images under way, each at its own step, sampler and guidance.

Requests run the ordinary sampling loop in a thread of their own, those that begin together and are made alike in one, with a
network that only hands over what it was asked. When all loops have asked, their questions go through the real network as one
batch, and each gets its rows of the answer. A request that comes joins at the next step; one that ends leaves room. Images
are those that `Model.sample` makes.
"""

from __future__ import annotations

import copy
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor, nn

from ditlab.diffusion import Denoiser, State
from ditlab.errors import UserError
from ditlab.models import Condition
from ditlab.playground.compute import computed
from ditlab.sample import Model, SampleConfig, interpolating, to_images
from ditlab.sample.generate import denoising_each, image_generator


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


def _denoised(model: Model, requests: Sequence[Request]) -> Iterator[State]:
    """The denoising of requests of one configuration, one after the other in each state; interpolations come alone."""
    first = requests[0]
    if isinstance(first, Interpolation):
        return interpolating(model, (first.seed, int(first.labels[0])), first.last, len(first.labels), first.config)
    generators = [image_generator(request.seed, k) for request in requests for k in range(len(request.labels))]
    return denoising_each(model, torch.cat([request.labels for request in requests]), generators, first.config)


def _rows(state: State, start: int, count: int) -> State:
    """Some images of a state."""
    before, x0, x = (tensor[start : start + count] for tensor in (state.before, state.x0, state.x))
    return State(before, x0, x, state.here, state.there)


@dataclass
class _Question:
    """What a sampling loop asked of the network, and the answer."""

    x: Tensor
    t: Tensor
    labels: Tensor
    answer: Future[Tensor] = field(default_factory=Future)


class _Ask(nn.Module):
    """Stands in for the network in a request's loop."""

    def __init__(self, batcher: Batcher):
        super().__init__()
        self._ask = batcher._ask

    def forward(self, x: Tensor, t: Tensor, condition: Condition) -> Tensor:
        return self._ask(_Question(x, t, condition.labels))


class Batcher:
    """Takes requests, and makes their images together.

    Args:
        model: on its device.
        most: images under way at a time.
        waiting: requests that may wait beside them.
        bf16: the network's matrix products are in bfloat16.
    """

    def __init__(self, model: Model, most: int = 64, waiting: int = 256, bf16: bool = False):
        self.model, self.most, self.bf16 = model, most, bf16
        self._asking = copy.copy(model)
        denoiser = model.denoiser
        self._asking.denoiser = Denoiser(_Ask(self), denoiser.schedule, denoiser.target, denoiser.learned_variance)
        self._room, self._waiting = waiting, deque[Request]()
        self._changed = threading.Condition()
        self._questions: list[_Question] = []
        self._finished: list[tuple[Request, Tensor]] = []  # denoised, not decoded
        self._loops = 0  # requests that are being denoised
        self._images = 0  # and their images
        self._unfinished = 0  # requests that are being denoised or decoded
        self._closing = False
        self._seconds = 0.0  # the last request took, from its first step
        self.made, self.calls, self.rows = 0, 0, 0  # images, and calls of the network and their rows, since it began
        self._thread = threading.Thread(target=self._work, name="batcher", daemon=True)
        self._thread.start()

    def submit(self, request: Request) -> Request:
        """Take a request; its ``images`` come later.

        Raises:
            UserError: it cannot be made, ever.
            Busy: the queue is full, or the batcher is closing.
        """
        if len(request.labels) > self.most:
            raise UserError(f"{len(request.labels)} images are too many; at most {self.most} a request")
        self.model.check(request.config)
        with self._changed:
            if self._closing or len(self._waiting) >= self._room:
                raise Busy(max(1.0, self._seconds))
            self._waiting.append(request)
            self._changed.notify_all()
        return request

    @property
    def load(self) -> tuple[int, int]:
        """Requests that wait, and images under way."""
        with self._changed:
            return len(self._waiting), self._images

    @property
    def busy(self) -> bool:
        """Whether images are still to be made."""
        with self._changed:
            return bool(self._waiting or self._unfinished)

    def close(self) -> None:
        """Take no more, make what was taken, and end."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        self._thread.join()

    def _ask(self, question: _Question) -> Tensor:
        with self._changed:
            self._questions.append(question)
            self._changed.notify_all()
        return question.answer.result()

    def _work(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(self._something_to_do)
                self._admit()
                if self._closing and not self._unfinished and not self._waiting:
                    return
                questions, finished = list[_Question](), list[tuple[Request, Tensor]]()
                if len(self._questions) == self._loops:  # every loop has asked, or is done
                    questions, self._questions = self._questions, questions
                    finished, self._finished = self._finished, finished
            if finished:
                self._decode(finished)
            if questions:
                self._answer(questions)

    def _something_to_do(self) -> bool:
        if self._loops:  # a request that waits is let in between two calls, when all loops have asked
            return len(self._questions) == self._loops
        return bool(self._waiting or self._finished) or (self._closing and not self._unfinished)

    def _admit(self) -> None:
        """Begin what there is room for, in the order it came; what comes together and is made alike shares a loop."""
        loops = list[list[Request]]()
        while self._waiting and (not self._images or self._images + len(self._waiting[0].labels) <= self.most):
            request = self._waiting.popleft()
            self._images, self._unfinished = self._images + len(request.labels), self._unfinished + 1
            alike = (same for same in loops if type(same[0]) is type(request) is Request)
            shared = next((same for same in alike if same[0].config == request.config), None)
            if shared is None:
                loops.append([request])
            else:
                shared.append(request)
        self._loops += len(loops)
        for requests in loops:
            threading.Thread(target=self._denoise, args=(requests,), name="loop", daemon=True).start()

    def _denoise(self, requests: list[Request]) -> None:
        """One loop, from noise to latents; who gives up, or is late, leaves the others alone."""
        began, problem, going, last = time.monotonic(), None, list(requests), None
        try:
            self._look_after(requests, going, None)
            if going:
                for state in _denoised(self._asking, requests):
                    last = state
                    self._look_after(requests, going, state)
                    if not going:
                        break
        except Exception as error:  # noqa: BLE001 - whatever it is, it is these requests'
            problem = error
        with self._changed:
            self._loops -= 1
            self._images -= sum(len(request.labels) for request in requests)
            self._seconds = time.monotonic() - began
            if problem is None and last is not None:
                starts = np.cumsum([0, *(len(request.labels) for request in requests)])
                self._finished += [
                    (request, last.x[start : start + len(request.labels)])
                    for request, start in zip(requests, starts[:-1], strict=True)
                    if request in going
                ]
            self._changed.notify_all()
        if problem is not None:
            failure = problem
            self._end(going, lambda: [request.images.set_exception(failure) for request in going])

    def _look_after(self, requests: Sequence[Request], going: list[Request], state: State | None) -> None:
        """Show each of the requests that go on its images; let those go that end here."""
        start = 0
        for request in requests:
            count, start = len(request.labels), start + len(request.labels)
            if request not in going:
                continue
            try:
                if state is not None and request.watch is not None:
                    request.watch(_rows(state, start - count, count))
                request.check()
            except Exception as error:  # noqa: BLE001 - it is this request's
                failure = error
                going.remove(request)
                self._end([request], lambda request=request, failure=failure: request.images.set_exception(failure))

    def _decode(self, finished: list[tuple[Request, Tensor]]) -> None:
        """The images of all requests that are denoised."""
        requests = [request for request, _ in finished]
        try:
            images = computed(lambda: to_images(self.model, torch.cat([latents for _, latents in finished])))
        except Exception as error:  # noqa: BLE001 - their requests fail with it
            problem = error
            self._end(requests, lambda: [request.images.set_exception(problem) for request in requests])
            return
        self.made += len(images)
        parts = np.split(images, np.cumsum([len(request.labels) for request in requests])[:-1])
        self._end(requests, lambda: [r.images.set_result(part) for r, part in zip(requests, parts, strict=True)])

    def _end(self, requests: Sequence[Request], tell: Callable[[], object]) -> None:
        """Tell how requests ended; the batcher closes after that."""
        tell()
        with self._changed:
            self._unfinished -= len(requests)
            self._changed.notify_all()

    def _answer(self, questions: list[_Question]) -> None:
        """One call of the network for all."""
        try:
            answers = computed(self._ask_network, questions)
        except Exception as error:  # noqa: BLE001 - the loops raise it, and their requests fail with it
            for question in questions:
                question.answer.set_exception(error)
            return
        self.calls, self.rows = self.calls + 1, self.rows + sum(len(question.x) for question in questions)
        for question, answer in zip(questions, answers, strict=True):
            question.answer.set_result(answer)

    def _ask_network(self, questions: list[_Question]) -> Sequence[Tensor]:
        x, t, labels = (torch.cat(parts) for parts in zip(*((q.x, q.t, q.labels) for q in questions), strict=True))
        with torch.inference_mode(), torch.autocast(x.device.type, torch.bfloat16, enabled=self.bf16):
            output = self.model.network(x, t, Condition(labels))
        return output.split([len(question.x) for question in questions])
