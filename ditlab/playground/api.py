"""The HTTP API: OpenAI's images API for diffusion models, with health and metrics endpoints."""

from __future__ import annotations

import asyncio
import base64
import math
import secrets
import time
from concurrent.futures import Future
from dataclasses import dataclass, replace
from typing import Annotated, Any, Literal

import numpy as np
from fastapi import APIRouter, FastAPI
from fastapi import Request as HttpRequest
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, PlainTextResponse
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from pydantic import BaseModel, ConfigDict, Field
from starlette.exceptions import HTTPException

from ditlab.diffusion import SAMPLERS
from ditlab.errors import UserError
from ditlab.pipelines import Pipeline, png, single
from ditlab.playground.batcher import Batcher
from ditlab.playground.middleware import ApiMiddleware
from ditlab.playground.request import Cancelled, QueueFull, Request, TimedOut

DISCONNECT_POLL = 0.05  # seconds between checks that a client is still connected
MAX_PROMPT, MAX_LABEL = 1000, 200  # characters


@dataclass(frozen=True)
class Limits:
    """Limits of one request."""

    images: int = 16
    """Images per request."""
    steps: int = 250
    """Sampling steps."""
    timeout: float = 120.0
    """Seconds after which a request fails."""


class GenerationRequest(BaseModel):
    """The body that ``client.images.generate`` of ``openai`` sends; ditlab's own fields come from ``extra_body``."""

    model_config = ConfigDict(extra="ignore", strict=False, allow_inf_nan=False)

    prompt: Annotated[str, Field(max_length=MAX_PROMPT)] = ""
    """Comma-separated class names, repeated in order over the images; empty: all classes in order."""
    labels: Annotated[list[int | Annotated[str, Field(max_length=MAX_LABEL)]], Field(max_length=MAX_PROMPT)] | None = (
        None
    )
    """Class names or indices as a list, for names that contain commas; replaces the prompt."""
    model: str | None = None
    """Name of a served model; the first one by default."""
    n: Annotated[int, Field(ge=1)] | None = 1
    """Number of images."""
    size: str | None = "auto"
    """``auto``, or the model's image size as width x height, such as ``28x28``."""
    response_format: Literal["b64_json"] | None = "b64_json"
    """Images are returned as base64-encoded PNG; URLs are not supported."""
    seed: Annotated[int, Field(ge=0, lt=2**63)] | None = None
    """Equal seeds give equal images; random if absent, and returned in the response."""
    guidance: Annotated[float, Field(ge=0, le=100)] | None = None
    """Guidance scale; 1 disables guidance."""
    guidance_low: Annotated[float, Field(ge=0, le=1)] | None = None
    """Lowest time t with guidance (t = 1 is noise)."""
    guidance_high: Annotated[float, Field(ge=0, le=1)] | None = None
    """Highest time t with guidance."""
    steps: Annotated[int, Field(ge=1)] | None = None
    """Sampling steps."""
    sampler: str | None = None
    """ddpm, ddim, euler, heun or dpm-solver."""


class RequestError(Exception):
    """A request that cannot be served; becomes a response in the format of OpenAI's errors."""

    def __init__(self, status: int, message: str, param: str | None = None, code: str | None = None):
        super().__init__(message)
        self.status, self.message, self.param, self.code = status, message, param, code


class ModelServer:
    """The models of a server with their batchers, request limits and metrics.

    Args:
        models: by name; the first is the default.
        limits: of one request.
        max_images: images of a model that are denoised at the same time.
        max_queue: requests that may wait for a model.
        key: the API key; empty: none is required.
    """

    def __init__(
        self, models: dict[str, Pipeline], limits: Limits, max_images: int = 64, max_queue: int = 256, key: str = ""
    ):
        self.models, self.limits, self.key = models, limits, key
        bf16 = {name: model.defaults.bf16_on(model.device) for name, model in models.items()}
        self.batchers = {name: Batcher(model, max_images, max_queue, bf16[name]) for name, model in models.items()}
        self.registry = CollectorRegistry()
        self.requests = Counter("ditlab_requests", "requests by HTTP status", ["status"], registry=self.registry)
        self.images = Counter("ditlab_images", "generated images", ["model"], registry=self.registry)
        self.seconds = Histogram("ditlab_request_seconds", "seconds from request to response", registry=self.registry)
        self.gauges = {
            name: Gauge(f"ditlab_{name}", words, ["model"], registry=self.registry)
            for name, words in {
                "waiting_requests": "requests in the queue",
                "images_under_way": "images being denoised",
                "network_calls": "network calls",
                "network_rows": "images in all network calls",
            }.items()
        }
        self.started = int(time.time())
        self.active_requests = 0  # image requests without a response yet

    def find(self, name: str | None) -> tuple[str, Pipeline, Batcher]:
        """A model by name, or the first one; with its name and batcher."""
        name = name or next(iter(self.models))
        if name not in self.models:
            raise RequestError(
                404, f"unknown model {name[:100]!r}; available: {', '.join(self.models)}", "model", "model_not_found"
            )
        return name, self.models[name], self.batchers[name]

    def metrics(self) -> bytes:
        """The metrics in Prometheus' text format."""
        for name, batcher in self.batchers.items():
            for gauge, value in zip(self.gauges.values(), (*batcher.load, batcher.calls, batcher.rows), strict=True):
                gauge.labels(name).set(value)
        return generate_latest(self.registry)

    def close(self) -> None:
        """Finish the accepted requests and stop the batchers."""
        for batcher in self.batchers.values():
            batcher.close()

    def build_request(self, body: GenerationRequest) -> tuple[str, Pipeline, Request]:
        """The request for a batcher, with the name of the model and the model.

        Raises:
            RequestError: the request exceeds a limit or does not fit the model.
        """
        name, model, _ = self.find(body.model)
        count = body.n or 1
        if count > self.limits.images:
            raise RequestError(400, f"n {count} is too many; at most {self.limits.images} images per request", "n")
        if body.steps is not None and body.steps > self.limits.steps:
            raise RequestError(400, f"steps {body.steps} is too many; at most {self.limits.steps}", "steps")
        if body.sampler is not None and body.sampler not in SAMPLERS:
            raise RequestError(
                400, f"unknown sampler {body.sampler[:100]!r}; available: {', '.join(SAMPLERS)}", "sampler"
            )
        _, height, width = model.pixels
        if body.size not in (None, "auto", f"{width}x{height}"):
            raise RequestError(400, f"size {body.size[:100]!r}: {name} generates {width}x{height}", "size")
        defaults = model.defaults
        guidance = {"scale": body.guidance, "low": body.guidance_low, "high": body.guidance_high}
        config = replace(
            defaults,
            steps=min(defaults.steps, self.limits.steps) if body.steps is None else body.steps,
            sampler=body.sampler or defaults.sampler,
            guidance=replace(defaults.guidance, **{key: value for key, value in guidance.items() if value is not None}),
        )
        seed = secrets.randbelow(2**31) if body.seed is None else body.seed
        labels = body.labels or [name.strip() for name in body.prompt.split(",") if name.strip()]
        try:
            indices = model.label_indices(labels, count)
        except UserError as error:
            raise RequestError(400, str(error), "labels" if body.labels else "prompt") from None
        return name, model, Request(indices, seed, config, self.limits.timeout)


def build_app(server: ModelServer) -> FastAPI:
    """The application that serves the models' API."""
    app = FastAPI(title="ditlab", version="1", docs_url=None, redoc_url=None)

    def error_response(status: int, message: str, code: str | None = None, param: str | None = None) -> JSONResponse:
        """Count an error, and build its response in the format of OpenAI's errors."""
        server.requests.labels(str(status)).inc()
        kind = {429: "rate_limit_error"}.get(status, "invalid_request_error" if status < 500 else "server_error")
        return JSONResponse({"error": {"message": message, "type": kind, "param": param, "code": code}}, status)

    @app.exception_handler(RequestError)
    async def request_error(_: HttpRequest, error: RequestError) -> JSONResponse:
        return error_response(error.status, error.message, error.code, error.param)

    @app.exception_handler(RequestValidationError)
    async def validation_error(_: HttpRequest, error: RequestValidationError) -> JSONResponse:
        first = error.errors()[0]
        if first["type"] == "json_invalid":
            return error_response(400, "the request body is not valid JSON")
        param = ".".join(str(part) for part in first["loc"][1:]) or None
        return error_response(400, f"{param or 'body'}: {first['msg']}", param=param)

    @app.exception_handler(HTTPException)
    async def http_error(_: HttpRequest, error: HTTPException) -> JSONResponse:
        return error_response(error.status_code, str(error.detail))

    @app.exception_handler(Exception)
    async def server_error(_: HttpRequest, error: Exception) -> JSONResponse:
        return error_response(500, f"internal server error ({type(error).__name__}); see the server's log")

    router = APIRouter(prefix="/v1")
    errors: dict[int | str, dict[str, Any]] = {
        status: {"description": words}
        for status, words in {
            400: "invalid request", 401: "missing or invalid API key", 404: "unknown model",
            413: "request body too large", 429: "too many requests; see Retry-After", 503: "timed out",
        }.items()
    }  # fmt: skip

    @router.post("/images/generations", responses=errors)
    async def generations(body: GenerationRequest, http: HttpRequest) -> dict[str, Any]:
        """Generate images."""
        started = time.monotonic()
        name, model, request = server.build_request(body)
        server.active_requests += 1
        try:
            server.batchers[name].submit(request)
            images = await _wait_while_connected(http, request)
            data = await asyncio.to_thread(
                lambda: [{"b64_json": base64.b64encode(png(single(image))).decode()} for image in images]
            )
        except QueueFull as error:
            response = error_response(429, str(error), "busy")
            response.headers["Retry-After"] = str(math.ceil(error.retry_after))
            return response  # type: ignore[return-value]
        except TimedOut as error:
            raise RequestError(503, str(error), code="timeout") from None
        except Cancelled:
            raise RequestError(499, "the client disconnected") from None
        except UserError as error:
            raise RequestError(400, str(error)) from None
        finally:
            server.active_requests -= 1
        server.requests.labels("200").inc()
        server.images.labels(name).inc(len(images))
        server.seconds.observe(time.monotonic() - started)
        labels = [model.names[k] if model.names else str(k) for k in request.labels.tolist() if k >= 0]
        return {"created": int(time.time()), "data": data, "model": name, "seed": request.seed, "labels": labels}

    @router.get("/models", responses={401: errors[401]})
    async def models() -> dict[str, Any]:
        """List the models."""
        rows = [
            {
                "id": name,
                "object": "model",
                "created": server.started,
                "owned_by": "ditlab",
                "labels": list(model.names),
            }
            for name, model in server.models.items()
        ]
        return {"object": "list", "data": rows}

    @app.get("/health")
    async def health() -> dict[str, str]:
        """Report that the server responds."""
        return {"status": "ok"}

    @app.get("/metrics", response_class=PlainTextResponse)
    async def metrics() -> PlainTextResponse:
        """Metrics in Prometheus' text format."""
        return PlainTextResponse(server.metrics(), media_type="text/plain; version=0.0.4; charset=utf-8")

    app.include_router(router)
    app.add_middleware(ApiMiddleware, key=server.key, error_response=error_response)
    return app


async def _wait_while_connected(http: HttpRequest, request: Request) -> np.ndarray:
    """The images of a request; cancels the request if the client disconnects."""
    images: Future[np.ndarray] = request.images
    result = asyncio.wrap_future(images)
    while True:
        done, _ = await asyncio.wait([result], timeout=DISCONNECT_POLL)
        if done:
            return result.result()
        if await http.is_disconnected():
            request.cancel()
