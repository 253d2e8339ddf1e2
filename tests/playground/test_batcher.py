"""Requests that share network calls get the images they would get alone."""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
import pytest
import torch

from ditlab.diffusion import GuidanceConfig, State
from ditlab.errors import UserError
from ditlab.pipelines import Pipeline, SampleConfig
from ditlab.playground.batcher import Batcher
from ditlab.playground.compute import submit_to_compute_thread
from ditlab.playground.request import Cancelled, QueueFull, Request, TimedOut

WAIT = 60  # seconds until a test fails


def request(
    labels: list[int], seed: int = 0, sampler: str = "euler", steps: int = 4, scale: float = 1.0, **more
) -> Request:
    config = SampleConfig(sampler, steps, GuidanceConfig(scale))
    return Request(torch.tensor(labels), seed, config, **more)


def alone(model: Pipeline, asked: Request) -> np.ndarray:
    config = asked.config
    return model.sample(
        asked.labels.tolist(), guidance=config.guidance, steps=config.steps, sampler=config.sampler, seed=asked.seed
    )


def same(found: np.ndarray, expected: np.ndarray) -> bool:
    """Equal up to the rounding of another batch size: one level of 255."""
    return found.shape == expected.shape and int(np.abs(found.astype(int) - expected).max()) <= 1


MIXED = [
    request([0, 1, 2], seed=1), request([5], seed=2, sampler="heun", steps=3), request([7, 7], seed=3, scale=2.0),
    request([3], seed=1, sampler="ddim", steps=9, scale=1.5), request([9] * 5, seed=4, sampler="dpm-solver", steps=5),
]  # fmt: skip


@pytest.mark.parametrize("most", [5, 64])
def test_every_request_gets_its_own_images_in_any_batch(model: Pipeline, most: int):
    batcher = Batcher(model, max_images=most)
    asked = [
        request(r.labels.tolist(), r.seed, r.config.sampler, r.config.steps, r.config.guidance.scale) for r in MIXED * 3
    ]
    for each in asked:
        batcher.submit(each)
    for each in asked:
        assert same(each.images.result(WAIT), alone(model, each))
    batcher.close()
    assert batcher.generated == sum(len(each.labels) for each in asked)
    assert batcher.load == (0, 0)


def test_requests_share_network_calls_and_join_running_ones(model: Pipeline):
    batcher, first_step = Batcher(model), threading.Event()
    long = batcher.submit(request([1], steps=30, on_step=lambda state: first_step.set()))
    assert first_step.wait(WAIT)
    others = [batcher.submit(request([2], seed=k, steps=10)) for k in range(8)]
    for each in (*others, long):
        each.images.result(WAIT)
    batcher.close()
    assert batcher.calls < 30 + 10  # alone they would be 110, one after the other 40
    assert batcher.rows == 110


def test_a_request_can_be_cancelled_without_the_others(model: Pipeline):
    batcher = Batcher(model)
    stopped = request([1], steps=200)
    stopped.on_step = lambda state: stopped.cancel()
    stays = request([2], seed=5, steps=6)
    for each in (stopped, stays):
        batcher.submit(each)
    with pytest.raises(Cancelled):
        stopped.images.result(WAIT)
    assert same(stays.images.result(WAIT), alone(model, stays))
    batcher.close()


def test_a_request_times_out(model: Pipeline):
    batcher = Batcher(model)
    late = batcher.submit(request([1], steps=1000, timeout=0.05))
    with pytest.raises(TimedOut, match="within"):
        late.images.result(WAIT)
    batcher.close()


def test_a_full_queue_names_the_time_of_a_retry(model: Pipeline):
    batcher, gate, begun = Batcher(model, max_images=1, max_queue=2), threading.Event(), threading.Event()

    def hold(state: State) -> None:
        begun.set()
        assert gate.wait(WAIT)

    taken = [batcher.submit(request([1], on_step=hold))]
    assert begun.wait(WAIT)
    taken += [batcher.submit(request([2], seed=k)) for k in range(2)]
    with pytest.raises(QueueFull) as caught:
        batcher.submit(request([3]))
    assert caught.value.retry_after >= 1
    assert batcher.load == (2, 1)
    gate.set()
    for each in taken:
        assert len(each.images.result(WAIT)) == 1
    batcher.close()


def test_closing_finishes_accepted_requests_and_accepts_no_more(model: Pipeline):
    batcher = Batcher(model, max_images=2)
    asked = [batcher.submit(request([k], seed=k)) for k in range(6)]
    batcher.close()
    assert all(each.images.done() for each in asked)
    with pytest.raises(QueueFull):
        batcher.submit(request([1]))


def test_a_failing_network_fails_its_requests_and_not_the_batcher(model: Pipeline, monkeypatch: pytest.MonkeyPatch):
    batcher = Batcher(model)
    with monkeypatch.context() as patch:
        patch.setattr(model.network, "forward", lambda *parts: 1 / 0)
        broken = [batcher.submit(request([k])) for k in range(3)]
        for each in broken:
            with pytest.raises(ZeroDivisionError):
                each.images.result(WAIT)
    good = batcher.submit(request([1], seed=1))
    assert same(good.images.result(WAIT), alone(model, good))
    batcher.close()


def test_impossible_requests_are_refused_at_once(model: Pipeline):
    batcher = Batcher(model, max_images=4)
    with pytest.raises(UserError, match="5 images are too many"):
        batcher.submit(request([1] * 5))
    with pytest.raises(UserError, match="guidance"):
        batcher.submit(request([1], scale=float("nan")))
    batcher.close()


def test_equal_requests_can_be_cancelled_one_by_one(model: Pipeline):
    batcher, gate = Batcher(model), threading.Event()

    def hold(state: State) -> None:
        assert gate.wait(WAIT)

    first = batcher.submit(request([0], on_step=hold))
    alike = [request([k, 9 - k], seed=k, steps=8) for k in range(5)]
    alike[2].on_step = lambda state: alike[2].cancel()
    seen = list[torch.Tensor]()
    alike[3].on_step = lambda state: seen.append(state.x_s)
    threads = threading.active_count()
    for each in alike:
        batcher.submit(each)
    gate.set()
    assert len(first.images.result(WAIT)) == 1
    for k, each in enumerate(alike):
        if k == 2:
            with pytest.raises(Cancelled):
                each.images.result(WAIT)
        else:
            assert same(each.images.result(WAIT), alone(model, each))
    assert threading.active_count() <= threads
    assert len(seen) == 8
    assert same(model.decode(seen[-1]), alone(model, alike[3]))
    batcher.close()


def test_batches_that_exceed_the_memory_are_split(model: Pipeline, monkeypatch: pytest.MonkeyPatch):
    forward: Any = model.network.forward
    batcher, rows = Batcher(model), list[int]()

    def small(x: torch.Tensor, *more: object) -> torch.Tensor:
        rows.append(len(x))
        if len(x) > 3:
            raise torch.OutOfMemoryError("no room")
        return forward(x, *more)

    monkeypatch.setattr(model.network, "forward", small)
    gate = threading.Event()
    submit_to_compute_thread(gate.wait, WAIT)
    asked = [batcher.submit(request([k] * 3, seed=k, steps=2)) for k in range(3)]  # start together
    gate.set()
    found = [each.images.result(WAIT) for each in asked]
    assert max(rows) == 9
    monkeypatch.undo()
    for each, images in zip(asked, found, strict=True):
        assert same(images, alone(model, each))
    batcher.close()
