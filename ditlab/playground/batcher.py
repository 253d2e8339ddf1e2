"""Requests denoised together: one call of the network for all images under way, each at its own step, sampler and guidance.

Every turn the worker admits waiting requests, evaluates the rows of all trajectories in one network call, advances each of
them by its prediction, and decodes those that are finished. Requests of the same configuration that begin together share a
trajectory. Images are those that `Pipeline.sample` makes.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from ditlab.diffusion import Denoiser, Prediction, Rows, State, Trajectory
from ditlab.errors import UserError
from ditlab.pipelines import Pipeline
from ditlab.playground.compute import run_on_compute_thread
from ditlab.playground.request import QueueFull, Request, select, trajectory_of


@dataclass
class _Group:
    """Requests that share a trajectory; ``active`` are those not cancelled."""

    requests: list[Request]
    trajectory: Trajectory
    active: list[Request] = field(default_factory=list)
    began: float = field(default_factory=time.monotonic)

    def parts(self) -> list[tuple[Request, int, int]]:
        """Each active request with the first of its images and their number."""
        starts = np.cumsum([0, *(len(request.labels) for request in self.requests)]).tolist()
        pairs = zip(self.requests, starts, strict=False)
        return [(request, start, len(request.labels)) for request, start in pairs if request in self.active]


class Batcher:
    """Takes requests, and makes their images together.

    Args:
        model: on its device.
        max_images: images of a model that are denoised at the same time.
        max_queue: requests that may wait.
        bf16: the network's matrix products are in bfloat16.
    """

    def __init__(self, model: Pipeline, max_images: int = 64, max_queue: int = 256, bf16: bool = False):
        self.model, self.max_images, self.bf16 = model, max_images, bf16
        self._denoiser = model.denoiser.cast(bf16)
        self._max_queue, self._waiting = max_queue, deque[Request]()
        self._changed = threading.Condition()
        self._groups = list[_Group]()
        self._images = 0  # under way
        self._unfinished = 0  # requests admitted and neither done nor failed
        self._closing = False
        self._seconds = 0.0  # duration of the last finished trajectory
        self.made, self.calls, self.rows = 0, 0, 0  # images, network calls and their rows, since the start
        self._thread = threading.Thread(target=self._work, name="batcher", daemon=True)
        self._thread.start()

    def submit(self, request: Request) -> Request:
        """Queue a request; its ``images`` are set when they are made.

        Raises:
            UserError: it cannot be made, ever.
            QueueFull: the queue is full, or the batcher is closing.
        """
        if len(request.labels) > self.max_images:
            raise UserError(f"{len(request.labels)} images are too many; at most {self.max_images} a request")
        self.model.check(request.config)
        with self._changed:
            if self._closing or len(self._waiting) >= self._max_queue:
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
        """Refuse new requests, finish those that were taken, and stop."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        self._thread.join()

    def _work(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting or self._groups or self._closing)
                admitted = self._admit()
                if self._closing and not self._groups and not admitted:
                    return
            for requests in admitted:
                self._start(requests)
            if self._groups:
                self._turn()

    def _admit(self) -> list[list[Request]]:
        """Take as many waiting requests as fit, in their order, those that can share a trajectory together."""
        shared = list[list[Request]]()
        while self._waiting and (not self._images or self._images + len(self._waiting[0].labels) <= self.max_images):
            request = self._waiting.popleft()
            self._images, self._unfinished = self._images + len(request.labels), self._unfinished + 1
            same = (each for each in shared if type(each[0]) is type(request) is Request)
            partners = next((each for each in same if each[0].config == request.config), None)
            if partners is None:
                shared.append([request])
            else:
                partners.append(request)
        return shared

    def _start(self, requests: list[Request]) -> None:
        try:
            group = _Group(requests, run_on_compute_thread(trajectory_of, self.model, requests), list(requests))
        except Exception as error:  # noqa: BLE001 - the requests fail with it
            self._finish(requests, error)
            self._release(requests)
            return
        self._groups.append(group)
        self._notify(group, None)

    def _turn(self) -> None:
        """One network call for all trajectories."""
        groups = [group for group in self._groups if group.active]
        try:
            states = run_on_compute_thread(self._advance, groups) if groups else []
        except Exception as error:  # noqa: BLE001 - every request under way fails with it
            for group in self._groups:
                self._finish(group.active, error)
                self._release(group.requests)
            self._groups.clear()
            return
        done = list[tuple[Request, Tensor]]()
        for group, state in zip(groups, states, strict=True):
            if state is None:
                continue
            self._notify(group, state)
            if group.trajectory.rows is None:
                done += [(request, state.x_s[start : start + count]) for request, start, count in group.parts()]
                self._seconds = time.monotonic() - group.began
        ended = [group for group in self._groups if not group.active or group.trajectory.rows is None]
        self._groups = [group for group in self._groups if group not in ended]
        for group in ended:
            self._release(group.requests)
        if done:
            self._decode(done)

    @torch.inference_mode()
    def _advance(self, groups: Sequence[_Group]) -> list[State | None]:
        batches = [group.trajectory.rows for group in groups if group.trajectory.rows is not None]
        predictions = _predict(self._denoiser, batches)
        self.calls, self.rows = self.calls + 1, self.rows + sum(len(rows.x) for rows in batches)
        return [group.trajectory.answer(each) for group, each in zip(groups, predictions, strict=True)]

    def _notify(self, group: _Group, state: State | None) -> None:
        """Call the requests' ``on_step``; drop those that were cancelled, are too late, or whose callback failed."""
        for request, start, count in group.parts():
            try:
                if state is not None and request.on_step is not None:
                    request.on_step(select(state, start, count))
                request.check()
            except Exception as error:  # noqa: BLE001 - this request's alone
                group.active.remove(request)
                self._finish([request], error)

    def _decode(self, done: list[tuple[Request, Tensor]]) -> None:
        """Decode the latents of all finished requests together."""
        requests = [request for request, _ in done]
        try:
            latents = torch.cat([latents for _, latents in done])
            images = np.concatenate(run_on_compute_thread(_in_parts, self.model.decode, latents))
        except Exception as error:  # noqa: BLE001 - the requests fail with it
            self._finish(requests, error)
            return
        self.made += len(images)
        parts = np.split(images, np.cumsum([len(request.labels) for request in requests])[:-1])
        self._finish(requests, parts)

    def _finish(self, requests: Sequence[Request], result: Sequence[np.ndarray] | Exception) -> None:
        """Set the requests' images, or the error they failed with."""
        for index, request in enumerate(list(requests)):
            if isinstance(result, Exception):
                request.images.set_exception(result)
            else:
                request.images.set_result(result[index])
        with self._changed:
            self._unfinished -= len(requests)
            self._changed.notify_all()

    def _release(self, requests: Sequence[Request]) -> None:
        """Make room for as many images."""
        with self._changed:
            self._images -= sum(len(request.labels) for request in requests)
            self._changed.notify_all()


def _predict(denoiser: Denoiser, batches: list[Rows]) -> list[Prediction]:
    """Predictions for all rows in one call, or in calls for halves that fit in the GPU's memory."""
    try:
        return denoiser(batches)
    except torch.OutOfMemoryError:
        if sum(len(rows.x) for rows in batches) == 1:
            raise
    if len(batches) == 1:
        first, second = (_predict(denoiser, [rows])[0] for rows in batches[0].halves())
        return [first.cat(second)]
    half = len(batches) // 2
    return [*_predict(denoiser, batches[:half]), *_predict(denoiser, batches[half:])]


def _in_parts(function: Callable[[Tensor], np.ndarray], tensor: Tensor) -> list[np.ndarray]:
    """The function of all rows at once, or of halves that fit in the GPU's memory."""
    try:
        return [function(tensor)]
    except torch.OutOfMemoryError:
        if len(tensor) == 1:
            raise
    return [part for half in tensor.chunk(2) for part in _in_parts(function, half)]
