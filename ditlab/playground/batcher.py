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
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from ditlab.diffusion import Denoiser, State
from ditlab.errors import UserError
from ditlab.models import Condition
from ditlab.pipelines import Pipeline, to_images
from ditlab.playground.compute import run_on_compute_thread
from ditlab.playground.request import QueueFull, Request, denoised, rows

T = TypeVar("T")


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
        max_images: images under way at a time.
        max_queue: requests that may wait beside them.
        bf16: the network's matrix products are in bfloat16.
    """

    def __init__(self, model: Pipeline, max_images: int = 64, max_queue: int = 256, bf16: bool = False):
        self.model, self.max_images, self.bf16 = model, max_images, bf16
        self._asking = copy.copy(model)
        denoiser = model.denoiser
        self._asking.denoiser = Denoiser(_Ask(self), denoiser.schedule, denoiser.target, denoiser.learned_variance)
        self._room, self._waiting = max_queue, deque[Request]()
        self._changed = threading.Condition()
        self._questions: list[_Question] = []
        self._finished: list[tuple[Request, Tensor]] = []  # denoised, not decoded
        self._loops = 0  # that are denoising
        self._images = 0  # in all of them
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
            QueueFull: the queue is full, or the batcher is closing.
        """
        if len(request.labels) > self.max_images:
            raise UserError(f"{len(request.labels)} images are too many; at most {self.max_images} a request")
        self.model.check(request.config)
        with self._changed:
            if self._closing or len(self._waiting) >= self._room:
                raise QueueFull(max(1.0, self._seconds))
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
        while self._waiting and (not self._images or self._images + len(self._waiting[0].labels) <= self.max_images):
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
                for state in denoised(self._asking, requests):
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
                if state is not None and request.on_step is not None:
                    request.on_step(rows(state, start - count, count))
                request.check()
            except Exception as error:  # noqa: BLE001 - it is this request's
                failure = error
                going.remove(request)
                self._end([request], lambda request=request, failure=failure: request.images.set_exception(failure))

    def _decode(self, finished: list[tuple[Request, Tensor]]) -> None:
        """The images of all requests that are denoised."""
        requests = [request for request, _ in finished]
        try:
            latents = torch.cat([latents for _, latents in finished])
            images = np.concatenate(
                run_on_compute_thread(lambda: _in_parts(lambda part: to_images(self.model, part), latents))
            )
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
            answers = run_on_compute_thread(self._ask_network, questions)
        except Exception as error:  # noqa: BLE001 - the loops raise it, and their requests fail with it
            for question in questions:
                question.answer.set_exception(error)
            return
        self.calls, self.rows = self.calls + 1, self.rows + sum(len(question.x) for question in questions)
        for question, answer in zip(questions, answers, strict=True):
            question.answer.set_result(answer)

    def _ask_network(self, questions: list[_Question]) -> Sequence[Tensor]:
        def ask(x: Tensor, t: Tensor, labels: Tensor) -> Tensor:
            with torch.inference_mode(), torch.autocast(x.device.type, torch.bfloat16, enabled=self.bf16):
                return self.model.network(x, t, Condition(labels))

        together = (torch.cat(parts) for parts in zip(*((q.x, q.t, q.labels) for q in questions), strict=True))
        return torch.cat(_in_parts(ask, *together)).split([len(question.x) for question in questions])


def _in_parts(function: Callable[..., T], *tensors: Tensor) -> list[T]:
    """What a function makes of tensors (N, ...): of all rows at once, or in parts where they do not fit in the GPU's memory."""
    count = len(tensors[0])
    try:
        return [function(*tensors)]
    except torch.OutOfMemoryError:
        if count == 1:
            raise
    halves = ([tensor[: count // 2] for tensor in tensors], [tensor[count // 2 :] for tensor in tensors])
    return [made for half in halves for made in _in_parts(function, *half)]
