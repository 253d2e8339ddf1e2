"""Continuous batching: one network call for the images of all running requests, each at its own step.

Requests differ in sampler, steps, guidance and labels. Each turn collects the network queries of all trajectories, calls
the network once, and advances every trajectory by its prediction. A new request joins at the next turn. Images equal
those of ``Pipeline.sample``.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch

from ditlab.diffusion import Prediction, Rows, State, Trajectory
from ditlab.errors import UserError
from ditlab.pipelines import Pipeline
from ditlab.playground.compute import submit_to_compute_thread
from ditlab.playground.request import QueueFull, Request

Outcome = Exception | np.ndarray


class _Group:
    """Requests of one configuration that start together, and their common trajectory.

    Args:
        requests: in the order of their rows in the trajectory.
        trajectory: their sampling.
        outcomes: where errors of requests are recorded.

    Attributes:
        active: the requests that have not ended, with their rows of the trajectory.
        state: the last finished step.
    """

    def __init__(self, requests: Sequence[Request], trajectory: Trajectory, outcomes: dict[Request, Outcome]):
        self.trajectory, self.outcomes, self.started = trajectory, outcomes, time.monotonic()
        ends = np.cumsum([len(request.labels) for request in requests]).tolist()
        self.count = ends[-1]
        self.active = {
            request: slice(end - len(request.labels), end) for request, end in zip(requests, ends, strict=True)
        }
        self.state: State | None = None

    @property
    def finished(self) -> bool:
        return not self.active or self.trajectory.rows is None

    def fail(self, error: Exception) -> None:
        """End all requests with an error."""
        self.outcomes.update(dict.fromkeys(self.active, error))
        self.active.clear()

    def advance(self, prediction: Prediction) -> None:
        """Continue the trajectory; call ``on_step``, and end requests that are cancelled or timed out."""
        state = self.trajectory.answer(prediction)
        if state is None:
            return
        self.state = state
        for request, rows in list(self.active.items()):
            try:
                if request.on_step is not None:
                    request.on_step(State(state.x_t[rows], state.x0[rows], state.x_s[rows], state.t, state.s))
                request.check()
            except Exception as error:  # noqa: BLE001 - fails this request only
                self.outcomes[request] = error
                del self.active[request]


class Batcher:
    """Accepts requests and generates their images in the compute thread, one turn after the other.

    Args:
        model: on its device.
        max_images: images that are denoised at the same time.
        max_queue: requests that may wait.
        bf16: the network's matrix products are in bfloat16.
    """

    def __init__(self, model: Pipeline, max_images: int = 64, max_queue: int = 256, bf16: bool = False):
        self.model, self.max_images, self.max_queue = model, max_images, max_queue
        self._denoiser = model.denoiser.prepared(bf16)
        self._changed = threading.Condition()
        self._queue = deque[Request]()
        self._groups: list[_Group] = []  # changed by the compute thread only, as is the next one
        self._outcomes: dict[Request, Outcome] = {}  # of requests that end in this turn
        self._images = 0  # of all groups
        self._scheduled, self._closing = False, False
        self._seconds = 0.0  # duration of the last group
        self.generated, self.calls, self.rows = 0, 0, 0  # images, network calls and their rows since the start

    def submit(self, request: Request) -> Request:
        """Queue a request and return it; ``request.images`` is the future of its result.

        Raises:
            UserError: the request cannot be generated.
            QueueFull: the queue is full, or the batcher is closing.
        """
        if len(request.labels) > self.max_images:
            raise UserError(f"{len(request.labels)} images are too many; at most {self.max_images} per request")
        self.model.check(request.config)
        with self._changed:
            if self._closing or len(self._queue) >= self.max_queue:
                raise QueueFull(max(1.0, self._seconds))
            request.images.set_running_or_notify_cancel()  # Future.cancel() has no effect from here on
            self._queue.append(request)
            self._schedule()
        return request

    @property
    def load(self) -> tuple[int, int]:
        """Numbers of waiting requests, and of images being denoised."""
        with self._changed:
            return len(self._queue), self._images

    @property
    def busy(self) -> bool:
        """Whether there are unfinished requests."""
        with self._changed:
            return self._scheduled

    def close(self) -> None:
        """Accept no more requests, and wait until the accepted ones are finished."""
        with self._changed:
            self._closing = True
            self._changed.wait_for(lambda: not self._scheduled)

    def _schedule(self) -> None:
        if not self._scheduled:
            self._scheduled = True
            submit_to_compute_thread(self._turn)

    @torch.inference_mode()
    def _turn(self) -> None:
        """Start waiting requests, call the network once, decode what is finished, and set the results."""
        try:
            self._start_waiting()
            self._call_network([group for group in self._groups if not group.finished])
            self._decode([group for group in self._groups if group.finished and group.active])
        except Exception as error:  # noqa: BLE001 - an error in the batcher itself must not leave requests waiting
            for group in self._groups:
                group.fail(error)
        with self._changed:
            for group in self._groups:
                if group.finished:
                    self._images, self._seconds = self._images - group.count, time.monotonic() - group.started
            self._groups = [group for group in self._groups if not group.finished]
        for request, outcome in self._outcomes.items():  # after the load has changed, before close() returns
            if isinstance(outcome, Exception):
                request.images.set_exception(outcome)
            else:
                request.images.set_result(outcome)
        self._outcomes.clear()
        with self._changed:
            self._scheduled = False
            if self._groups or self._queue:
                self._schedule()
            self._changed.notify_all()

    def _take_waiting(self) -> list[list[Request]]:
        """Waiting requests for which there is room, in order; those that can share a trajectory are together."""
        taken: dict[object, list[Request]] = {}
        with self._changed:
            while self._queue and (not self._images or self._images + len(self._queue[0].labels) <= self.max_images):
                request = self._queue.popleft()
                try:
                    request.check()
                except Exception as error:  # noqa: BLE001 - it has ended while it waited
                    self._outcomes[request] = error
                    continue
                taken.setdefault(request.group, []).append(request)
                self._images += len(request.labels)
        return list(taken.values())

    def _start_waiting(self) -> None:
        for requests in self._take_waiting():
            try:
                self._groups.append(_Group(requests, requests[0].trajectory(self.model, requests[1:]), self._outcomes))
            except Exception as error:  # noqa: BLE001 - fails these requests only
                with self._changed:
                    self._images -= sum(len(request.labels) for request in requests)
                self._outcomes.update(dict.fromkeys(requests, error))

    def _call_network(self, groups: Sequence[_Group]) -> None:
        if not groups:
            return
        batches = [group.trajectory.rows for group in groups if group.trajectory.rows is not None]
        try:
            predictions = self._predict(batches)
        except Exception as error:  # noqa: BLE001 - fails the requests of this call
            for group in groups:
                group.fail(error)
            return
        self.calls, self.rows = self.calls + 1, self.rows + sum(len(rows.x) for rows in batches)
        for group, prediction in zip(groups, predictions, strict=True):
            try:
                group.advance(prediction)
            except Exception as error:  # noqa: BLE001 - fails the requests of this group
                group.fail(error)

    def _predict(self, batches: Sequence[Rows]) -> list[Prediction]:
        """One network call, or two calls of half the rows each if they exceed the GPU's memory."""
        try:
            return self._denoiser(batches)
        except torch.OutOfMemoryError:
            if len(batches) == len(batches[0].x) == 1:
                raise
        half = len(batches) // 2
        if half:
            return [*self._predict(batches[:half]), *self._predict(batches[half:])]
        (rows,) = batches
        parts = slice(len(rows.x) // 2), slice(len(rows.x) // 2, None)
        halves = [replace(rows, x=rows.x[part], condition=rows.condition.select(part)) for part in parts]
        (first,), (second,) = (self._predict([rows]) for rows in halves)
        variance = (
            None if first.variance is None or second.variance is None else torch.cat([first.variance, second.variance])
        )
        return [Prediction(torch.cat([first.x0, second.x0]), torch.cat([first.epsilon, second.epsilon]), variance)]

    def _decode(self, groups: Sequence[_Group]) -> None:
        """Decode the latents of finished requests."""
        latents = {
            request: group.state.x_s[rows] for group in groups if group.state for request, rows in group.active.items()
        }
        if not latents:
            return
        try:
            images = self._decode_latents(torch.cat(list(latents.values())))
        except Exception as error:  # noqa: BLE001 - fails these requests only
            self._outcomes.update(dict.fromkeys(latents, error))
            return
        self.generated += len(images)
        parts = np.split(images, np.cumsum([len(rows) for rows in latents.values()])[:-1])
        self._outcomes.update(zip(latents, parts, strict=True))

    def _decode_latents(self, latents: torch.Tensor) -> np.ndarray:
        """Images uint8 (N, H, W, C), decoded in halves if they exceed the GPU's memory."""
        try:
            return self.model.decode(latents)
        except torch.OutOfMemoryError:
            if len(latents) == 1:
                raise
        return np.concatenate([self._decode_latents(half) for half in latents.tensor_split(2)])
