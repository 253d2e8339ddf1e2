"""Responses to a request for images: one JSON body, or server-sent events with partial images."""

from __future__ import annotations

import asyncio
import base64
import json
import math
import time
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
from fastapi import Request as HttpRequest
from torch import Tensor

from ditlab.diffusion import State
from ditlab.errors import UserError
from ditlab.pipelines import image_file, single
from ditlab.playground.compute import submit_to_compute_thread
from ditlab.playground.request import Cancelled, QueueFull, Request, TimedOut
from ditlab.playground.schema import GenerationRequest, RequestError
from ditlab.playground.served import ModelServer

POLL = 0.05  # seconds between checks that a client is still connected
NO_USAGE = {  # tokens are not counted; the openai client's type has the field
    "input_tokens": 0, "input_tokens_details": {"image_tokens": 0, "text_tokens": 0}, "output_tokens": 0, "total_tokens": 0,
}  # fmt: skip


class Response:
    """The response to one request.

    Args:
        server: the models.
        body: the request as it was sent.
        http: its connection.

    Raises:
        RequestError: the request exceeds a limit or does not fit the model.
    """

    def __init__(self, server: ModelServer, body: GenerationRequest, http: HttpRequest):
        self.server, self.http = server, http
        self.name, self.model, self.request = server.build_request(body)
        self.format, self.partial_images = body.output_format or "png", body.partial_images or 0
        self.quality = 100 if body.output_compression is None else body.output_compression
        self.settings = server.image_settings(self.name, self.model, self.request)

    async def images(self) -> dict[str, Any]:
        """The finished images, as the client's ``ImagesResponse``.

        Raises:
            RequestError: the server is busy, the request timed out, or the client disconnected.
        """
        with self._counted():
            self.server.batchers[self.name].submit(self.request)
            async for _ in self._until_done():
                pass
            files = [
                await self._encode(*each) for each in zip(self.request.images.result(), self.settings, strict=True)
            ]
        data = [{"b64_json": file} for file in files]
        return {"created": int(time.time()), "data": data, **self._facts()}

    async def events(self) -> AsyncIterator[str]:
        """First an empty string, once the request is accepted; then partial images, and the image or an error.

        Raises:
            RequestError: the server is busy; before the first item only, later errors are events.
        """
        accepted = False
        try:
            with self._counted():
                partial = _PartialImages(self.request, self.partial_images)
                self.server.batchers[self.name].submit(self.request)
                accepted = True
                yield ""
                index = 0
                async for _ in self._until_done():
                    while not partial.latents.empty():
                        event = await self._partial_image(partial.latents.get_nowait(), index)
                        index += 1
                        yield event
                file = await self._encode(self.request.images.result()[0], self.settings[0])
            yield _event("image_generation.completed", self._event_facts(file) | {"usage": NO_USAGE})
        except RequestError as error:
            if not accepted:
                raise
            self.server.requests.labels(str(error.status_code)).inc()
            yield _event("error", error_body(error.status_code, str(error), error.code, error.param))
        except Exception as error:
            yield _event("error", error_body(500, internal_error(error)))
            raise  # into the log
        finally:
            self.request.cancel()  # no effect on a finished one

    async def _until_done(self) -> AsyncIterator[None]:
        """An item every POLL seconds and one at the end; cancels the request if the client disconnects."""
        images = asyncio.wrap_future(self.request.images)
        while not (await asyncio.wait([images], timeout=POLL))[0]:
            yield
            if await self.http.is_disconnected():
                self.request.cancel()
        yield
        images.result()

    async def _partial_image(self, x0: Tensor, index: int) -> str:
        image = await asyncio.wrap_future(submit_to_compute_thread(self.model.decode, x0))
        facts = self._event_facts(await self._encode(image[0], self.settings[0]))
        return _event("image_generation.partial_image", {**facts, "partial_image_index": index})

    async def _encode(self, image: np.ndarray, settings: Mapping[str, object]) -> str:
        """A file of an image uint8 (H, W, C), in base64."""
        file = await asyncio.to_thread(image_file, single(image), settings, self.format, self.quality)
        return base64.b64encode(file).decode()

    def _facts(self) -> dict[str, Any]:
        channels, height, width = self.model.pixels
        return {
            "model": self.name, "seed": self.request.seed, "labels": self.server.labels(self.model, self.request),
            "prompts": self.request.captions, "notes": list(self.request.notes),
            "output_format": self.format, "size": f"{width}x{height}",
            "background": "transparent" if channels == 4 else "opaque",
        }  # fmt: skip

    def _event_facts(self, file: str) -> dict[str, Any]:
        return {"b64_json": file, "created_at": int(time.time()), "quality": "auto", **self._facts()}

    @contextmanager
    def _counted(self) -> Iterator[None]:
        """Count the request in the metrics, and turn what a batcher raises into errors of the API."""
        started = time.monotonic()
        self.server.active_requests += 1
        try:
            yield
        except QueueFull as error:
            headers = {"Retry-After": str(math.ceil(error.retry_after))}
            raise RequestError(429, str(error), code="busy", headers=headers) from None
        except TimedOut as error:
            raise RequestError(503, str(error), code="timeout") from None
        except Cancelled:
            raise RequestError(499, "the client disconnected") from None
        except UserError as error:
            raise RequestError(400, str(error)) from None
        finally:
            self.server.active_requests -= 1
        self.server.requests.labels("200").inc()
        self.server.images.labels(self.name).inc(len(self.request.labels))
        self.server.seconds.observe(time.monotonic() - started)


class _PartialImages:
    """Called with the state after each step: hands the predicted x0 of ``count`` steps, evenly spaced, to the event loop."""

    def __init__(self, request: Request, count: int):
        steps = request.config.steps
        self.due = {round(steps * k / (count + 1)) for k in range(1, count + 1)} - {0, steps}
        self.latents, self.loop, self.step = asyncio.Queue[Tensor](), asyncio.get_running_loop(), 0
        request.on_step = self

    def __call__(self, state: State) -> None:
        self.step += 1
        if self.step in self.due:
            self.loop.call_soon_threadsafe(self.latents.put_nowait, state.x0.clone())


def error_body(status: int, message: str, code: str | None = None, param: str | None = None) -> dict[str, Any]:
    """An error in the format of OpenAI's."""
    kind = {429: "rate_limit_error"}.get(status, "invalid_request_error" if status < 500 else "server_error")
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


def internal_error(error: Exception) -> str:
    """The message for a fault of the server."""
    return f"internal server error ({type(error).__name__}); see the server's log"


def _event(kind: str, data: Mapping[str, object]) -> str:
    """A server-sent event; an error's data has no type, as the client expects."""
    return f"event: {kind}\ndata: {json.dumps(data if kind == 'error' else {'type': kind, **data})}\n\n"
