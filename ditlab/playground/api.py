"""The HTTP API: images in the shape that the ``openai`` client asks for, and what a server tells of itself."""

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
from ditlab.pipelines import Pipeline, label_indices, png, single
from ditlab.playground.batcher import Batcher
from ditlab.playground.guard import Guard
from ditlab.playground.request import Busy, Cancelled, Late, Request

POLL = 0.05  # seconds between looks at whether a client is still there
LONGEST, NAME = 1000, 200  # characters of a prompt, and of a label


@dataclass(frozen=True)
class Limits:
    """What one request may ask for."""

    images: int = 16
    """Images a request."""
    steps: int = 250
    """Sampling steps."""
    seconds: float = 120.0
    """After which a request is given up."""


class Generation(BaseModel):
    """A request for images, as ``openai``'s ``client.images.generate`` sends it; ditlab's own fields go into ``extra_body``."""

    model_config = ConfigDict(extra="ignore", strict=False, allow_inf_nan=False)

    prompt: Annotated[str, Field(max_length=LONGEST)] = ""
    """Names of labels, with commas between, given out in turn; empty: every class in turn."""
    labels: Annotated[list[int | Annotated[str, Field(max_length=NAME)]], Field(max_length=LONGEST)] | None = None
    """The same as a list, for names with commas in them, or by number; goes before the prompt."""
    model: str | None = None
    """Name of a model of this server; its first by default."""
    n: Annotated[int, Field(ge=1)] | None = 1
    """How many images."""
    size: str | None = "auto"
    """``auto``, or the one size that the model makes, as ``28x28``: width, height."""
    response_format: Literal["b64_json"] | None = "b64_json"
    """Images come as PNG in base64; there is no other place they could be fetched from."""
    seed: Annotated[int, Field(ge=0, lt=2**63)] | None = None
    """The same seed again gives the same images; none: one is drawn, and told."""
    guidance: Annotated[float, Field(ge=0, le=100)] | None = None
    """Guidance scale; 1 is off."""
    guidance_low: Annotated[float, Field(ge=0, le=1)] | None = None
    """Guide only at times of at least this (1 is noise)."""
    guidance_high: Annotated[float, Field(ge=0, le=1)] | None = None
    """Guide only at times of at most this."""
    steps: Annotated[int, Field(ge=1)] | None = None
    """Sampling steps."""
    sampler: str | None = None
    """ddpm, ddim, euler, heun or dpm-solver."""


class Refused(Exception):  # noqa: N818 - the client's error
    """What a client asked cannot be done; becomes an answer in the shape of OpenAI's errors."""

    def __init__(self, status: int, message: str, param: str | None = None, code: str | None = None):
        super().__init__(message)
        self.status, self.message, self.param, self.code = status, message, param, code


class Served:
    """The models of a server, each with its batcher, and what is counted of them.

    Args:
        models: by name; the first is taken where none is asked for.
        limits: of a request.
        most: images of a model under way at a time.
        waiting: requests that may wait for a model.
        key: that clients must show; empty: none.
    """

    def __init__(self, models: dict[str, Pipeline], limits: Limits, most: int = 64, waiting: int = 256, key: str = ""):
        self.models, self.limits, self.key = models, limits, key
        bf16 = {name: model.defaults.bf16_on(model.device) for name, model in models.items()}
        self.batchers = {name: Batcher(model, most, waiting, bf16[name]) for name, model in models.items()}
        self.registry = CollectorRegistry()
        self.requests = Counter("ditlab_requests", "requests, by how they ended", ["status"], registry=self.registry)
        self.images = Counter("ditlab_images", "images made", ["model"], registry=self.registry)
        self.seconds = Histogram("ditlab_request_seconds", "from request to answer", registry=self.registry)
        self.waiting = Gauge("ditlab_waiting_requests", "requests that wait", ["model"], registry=self.registry)
        self.under_way = Gauge("ditlab_images_under_way", "images being denoised", ["model"], registry=self.registry)
        self.calls = Gauge("ditlab_network_calls", "calls of the network", ["model"], registry=self.registry)
        self.rows = Gauge(
            "ditlab_network_rows", "images in all calls of the network", ["model"], registry=self.registry
        )
        self.began = int(time.time())
        self.answering = 0  # requests for images that are not answered yet

    def named(self, name: str | None) -> tuple[str, Pipeline, Batcher]:
        """A model by its name, the first where none is given."""
        chosen = name or next(iter(self.models))
        if chosen not in self.models:
            raise Refused(
                404, f"no model {chosen[:100]!r}; there are {', '.join(self.models)}", "model", "model_not_found"
            )
        return chosen, self.models[chosen], self.batchers[chosen]

    def metrics(self) -> bytes:
        """In Prometheus' text format."""
        for name, batcher in self.batchers.items():
            waiting, under_way = batcher.load
            self.waiting.labels(name).set(waiting)
            self.under_way.labels(name).set(under_way)
            self.calls.labels(name).set(batcher.calls)
            self.rows.labels(name).set(batcher.rows)
        return generate_latest(self.registry)

    def close(self) -> None:
        """Finish what was taken."""
        for batcher in self.batchers.values():
            batcher.close()

    def request(self, asked: Generation) -> tuple[str, Pipeline, Request]:
        """What is to be made.

        Raises:
            Refused: it cannot be.
        """
        name, model, _ = self.named(asked.model)
        count = asked.n or 1
        if count > self.limits.images:
            raise Refused(400, f"n {count} is too many; at most {self.limits.images} images a request", "n")
        if asked.steps is not None and asked.steps > self.limits.steps:
            raise Refused(400, f"steps {asked.steps} are too many; at most {self.limits.steps}", "steps")
        if asked.sampler is not None and asked.sampler not in SAMPLERS:
            raise Refused(400, f"unknown sampler {asked.sampler[:100]!r}; {', '.join(SAMPLERS)}", "sampler")
        _, height, width = model.pixels
        if asked.size not in (None, "auto", f"{width}x{height}"):
            raise Refused(400, f"size {asked.size[:100]!r}: {name} makes {width}x{height}", "size")
        usual = model.defaults
        guided = {"scale": asked.guidance, "low": asked.guidance_low, "high": asked.guidance_high}
        config = replace(
            usual,
            steps=min(usual.steps, self.limits.steps) if asked.steps is None else asked.steps,
            sampler=asked.sampler or usual.sampler,
            guidance=replace(usual.guidance, **{part: value for part, value in guided.items() if value is not None}),
        )
        seed = secrets.randbelow(2**31) if asked.seed is None else asked.seed
        wanted = asked.labels or [word.strip() for word in asked.prompt.split(",") if word.strip()]
        try:
            labels = label_indices(model, wanted, count)
        except UserError as problem:
            raise Refused(400, str(problem), "labels" if asked.labels else "prompt") from None
        return name, model, Request(labels, seed, config, self.limits.seconds)


def build_app(served: Served) -> FastAPI:
    """The server of some models."""
    app = FastAPI(title="ditlab", version="1", docs_url=None, redoc_url=None)

    def counted(status: int, message: str, code: str | None = None, param: str | None = None) -> JSONResponse:
        """An error in the shape that OpenAI's clients read: what was wrong, its name for programs, the field that was."""
        served.requests.labels(str(status)).inc()
        kind = {429: "rate_limit_error"}.get(status, "invalid_request_error" if status < 500 else "server_error")
        return JSONResponse({"error": {"message": message, "type": kind, "param": param, "code": code}}, status)

    @app.exception_handler(Refused)
    async def refused(_: HttpRequest, problem: Refused) -> JSONResponse:
        return counted(problem.status, problem.message, problem.code, problem.param)

    @app.exception_handler(RequestValidationError)
    async def invalid(_: HttpRequest, problem: RequestValidationError) -> JSONResponse:
        first = problem.errors()[0]
        if first["type"] == "json_invalid":
            return counted(400, "the body is not JSON")
        param = ".".join(str(part) for part in first["loc"][1:]) or None
        return counted(400, f"{param or 'body'}: {first['msg']}", param=param)

    @app.exception_handler(HTTPException)
    async def refused_by_http(_: HttpRequest, problem: HTTPException) -> JSONResponse:
        return counted(problem.status_code, str(problem.detail))

    @app.exception_handler(Exception)
    async def failed(_: HttpRequest, problem: Exception) -> JSONResponse:
        return counted(500, f"the server failed ({type(problem).__name__}); it goes on, and its log says more")

    router = APIRouter(prefix="/v1")
    failures: dict[int | str, dict[str, Any]] = {
        status: {"description": words}
        for status, words in {
            400: "not possible", 401: "no key", 404: "no such model", 413: "too large", 429: "too busy; see Retry-After",
            503: "not done in time",
        }.items()
    }  # fmt: skip

    @router.post("/images/generations", responses=failures)
    async def generations(asked: Generation, http: HttpRequest) -> dict[str, Any]:
        """Make images."""
        began = time.monotonic()
        name, model, request = served.request(asked)
        served.answering += 1
        try:
            served.batchers[name].submit(request)
            images = await _while_connected(http, request)
            data = await asyncio.to_thread(
                lambda: [{"b64_json": base64.b64encode(png(single(image))).decode()} for image in images]
            )
        except Busy as busy:
            retry = {"Retry-After": str(math.ceil(busy.seconds))}
            answer = counted(429, str(busy), "busy")
            answer.headers.update(retry)
            return answer  # type: ignore[return-value]
        except Late as late:
            raise Refused(503, str(late), code="timeout") from None
        except Cancelled:
            raise Refused(499, "the client went away") from None
        except UserError as problem:
            raise Refused(400, str(problem)) from None
        finally:
            served.answering -= 1
        served.requests.labels("200").inc()
        served.images.labels(name).inc(len(images))
        served.seconds.observe(time.monotonic() - began)
        names = [model.names[k] if model.names else str(k) for k in request.labels.tolist() if k >= 0]
        return {"created": int(time.time()), "data": data, "model": name, "seed": request.seed, "labels": names}

    @router.get("/models", responses={401: failures[401]})
    async def models() -> dict[str, Any]:
        """The models of this server."""
        listed = [
            {"id": name, "object": "model", "created": served.began, "owned_by": "ditlab", "labels": list(model.names)}
            for name, model in served.models.items()
        ]
        return {"object": "list", "data": listed}

    @app.get("/health")
    async def health() -> dict[str, str]:
        """Whether the server answers."""
        return {"status": "ok"}

    @app.get("/metrics", response_class=PlainTextResponse)
    async def metrics() -> PlainTextResponse:
        """Counts and times, in Prometheus' format."""
        return PlainTextResponse(served.metrics(), media_type="text/plain; version=0.0.4; charset=utf-8")

    app.include_router(router)
    app.add_middleware(Guard, key=served.key, refuse=counted)
    return app


async def _while_connected(http: HttpRequest, request: Request) -> np.ndarray:
    """The images, or Cancelled where the client goes away before they are made."""
    images: Future[np.ndarray] = request.images
    waiting = asyncio.wrap_future(images)
    while True:
        done, _ = await asyncio.wait([waiting], timeout=POLL)
        if done:
            return waiting.result()
        if await http.is_disconnected():
            request.give_up()
