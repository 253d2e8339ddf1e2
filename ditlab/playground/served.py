"""The served models: their batchers, the limits of requests, and metrics."""

from __future__ import annotations

import secrets
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from ditlab.diffusion import SAMPLERS
from ditlab.errors import UserError
from ditlab.pipelines import Pipeline
from ditlab.playground.batcher import Batcher
from ditlab.playground.request import Request
from ditlab.playground.schema import GenerationRequest, RequestError


@dataclass(frozen=True)
class Limits:
    """Limits of one request."""

    images: int = 16
    """Images per request."""
    steps: int = 250
    """Sampling steps."""
    timeout: float = 120.0
    """Seconds after which a request fails."""


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
        count = body.count
        if count > self.limits.images:
            raise RequestError(400, f"n {count} is too many; at most {self.limits.images} images per request", "n")
        if body.steps is not None and body.steps > self.limits.steps:
            raise RequestError(400, f"steps {body.steps} is too many; at most {self.limits.steps}", "steps")
        if body.sampler is not None and body.sampler not in SAMPLERS:
            raise RequestError(
                400, f"unknown sampler {body.sampler[:100]!r}; available: {', '.join(SAMPLERS)}", "sampler"
            )
        channels, height, width = model.pixels
        if body.size not in (None, "auto", f"{width}x{height}"):
            raise RequestError(400, f"size {body.size[:100]!r}: {name} generates {width}x{height}", "size")
        _check_output(body, count, name, channels)
        defaults = model.defaults
        guidance = {"scale": body.guidance, "low": body.guidance_low, "high": body.guidance_high}
        config = replace(
            defaults,
            steps=min(defaults.steps, self.limits.steps) if body.steps is None else body.steps,
            sampler=body.sampler or defaults.sampler,
            negative=defaults.negative if body.negative_prompt is None else body.negative_prompt,
            guidance=replace(defaults.guidance, **{key: value for key, value in guidance.items() if value is not None}),
        )
        seed = secrets.randbelow(2**31) if body.seed is None else body.seed
        prompts = None if body.labels else body.prompts
        with _refused("labels" if body.labels else "prompt"):
            indices, names = model.descriptions(model.given(body.labels or None, prompts), count)
        with _refused("negative_prompt"):
            model.check_negative(config)
        notes = tuple(model.notes(prompts or (), count, config))
        texts = names[:count] if model.text is not None else ()
        return name, model, Request(indices, seed, config, self.limits.timeout, texts, notes)

    def labels(self, model: Pipeline, request: Request) -> list[str]:
        """The class names of a request's images; empty for a model without labels."""
        indices = () if request.prompts else request.labels.tolist()
        return [model.names[k] if model.names else str(k) for k in indices if k >= 0]

    def image_settings(self, name: str, model: Pipeline, request: Request) -> list[dict[str, object]]:
        """All that each image of a request depends on, for the image's file; the keys are those of ``ditlab sample``."""
        shared = {"model": name, "seed": request.seed, **asdict(request.config)}
        shared |= {"notes": request.notes} if request.notes else {}
        if request.prompts:
            return [{**shared, "image": k, "prompt": prompt} for k, prompt in enumerate(request.captions)]
        labels = self.labels(model, request) or [""] * len(request.labels)
        return [
            {**shared, "image": k, "label": label, "label index": index}
            for k, (label, index) in enumerate(zip(labels, request.labels.tolist(), strict=True))
        ]


@contextmanager
def _refused(param: str) -> Iterator[None]:
    """Turn an error of the user into one of the API that names the field."""
    try:
        yield
    except UserError as error:
        raise RequestError(400, str(error), param) from None


def _check_output(body: GenerationRequest, count: int, name: str, channels: int) -> None:
    """Raise RequestError for fields of the response that do not go together."""
    kind = body.output_format or "png"
    if kind == "jpeg" and channels == 4:
        raise RequestError(
            400, f"{name} generates images with transparency; use output_format png or webp", "output_format"
        )
    if kind == "png" and body.output_compression not in (None, 100):
        raise RequestError(
            400, "output_compression is for output_format webp and jpeg; png is lossless", "output_compression"
        )
    if body.stream and count > 1:
        raise RequestError(400, f"stream returns one image, n is {count}; use n 1, or no stream", "n")
    if body.partial_images and not body.stream:
        raise RequestError(400, "partial_images needs stream true", "partial_images")
