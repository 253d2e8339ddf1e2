"""The HTTP API: OpenAI's images API for diffusion models, with health and metrics endpoints."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from fastapi import Depends, FastAPI, HTTPException
from fastapi import Request as HttpRequest
from fastapi.exceptions import RequestValidationError
from fastapi.middleware.cors import CORSMiddleware
from fastapi.responses import JSONResponse, PlainTextResponse, StreamingResponse
from fastapi.security import HTTPBearer
from starlette.exceptions import HTTPException as StarletteHTTPException
from starlette.routing import Match

from ditlab.playground.middleware import ApiMiddleware
from ditlab.playground.responses import Response, error_body, internal_error
from ditlab.playground.schema import GenerationRequest, RequestError, explain
from ditlab.playground.served import ModelServer

METHODS = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE"]
EXAMPLES = 16  # prompts of a model that are listed
NOT_SUPPORTED = {
    "/v1/images/edits": "images.edit is not supported: the models generate images from text or class names, not from images",
    "/v1/images/variations": "images.create_variation is not supported: the models generate images from text or class names",
}


def build_app(server: ModelServer, cors: Sequence[str] = ()) -> FastAPI:
    """The application that serves the models' API.

    Args:
        server: the models.
        cors: origins whose pages may call it from a browser; ``*`` is any.
    """
    app = FastAPI(title="ditlab", version="1", docs_url="/docs", redoc_url=None)

    def error_response(
        status: int, message: str, code: str | None = None, param: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> JSONResponse:  # fmt: skip
        """Count an error, and build its response in the format of OpenAI's errors."""
        server.requests.labels(str(status)).inc()
        return JSONResponse(error_body(status, message, code, param), status, headers)

    @app.exception_handler(StarletteHTTPException)
    async def http_error(_: HttpRequest, error: StarletteHTTPException) -> JSONResponse:
        code, param = (error.code, error.param) if isinstance(error, RequestError) else (None, None)
        return error_response(error.status_code, str(error.detail), code, param, error.headers)

    @app.exception_handler(RequestValidationError)
    async def validation_error(_: HttpRequest, error: RequestValidationError) -> JSONResponse:
        message, param = explain(error.errors())
        return error_response(400, message, param=param)

    @app.exception_handler(Exception)
    async def server_error(_: HttpRequest, error: Exception) -> JSONResponse:
        return error_response(500, internal_error(error))

    # The middleware checks the key; the dependency adds it to the schema, for the button Authorize of /docs.
    key = [Depends(HTTPBearer(auto_error=False))] if server.key else []
    errors: dict[int | str, dict[str, Any]] = {
        status: {"description": words}
        for status, words in {
            400: "invalid request", 401: "missing or invalid API key", 404: "unknown model",
            413: "request body too large", 429: "too many requests; see Retry-After", 503: "timed out",
        }.items()
    }  # fmt: skip

    @app.post("/v1/images/generations", responses=errors, response_model=None, dependencies=key)
    async def generations(body: GenerationRequest, http: HttpRequest) -> dict[str, Any] | StreamingResponse:
        """Generate images."""
        response = Response(server, body, http)
        if not body.stream:
            return await response.images()
        events = response.events()
        await anext(events)  # an error before the request is accepted has a status of its own
        return StreamingResponse(events, media_type="text/event-stream", headers={"Cache-Control": "no-cache"})

    def describe(name: str) -> dict[str, Any]:
        model = server.models[name]
        takes = {"takes_prompts": model.text is not None, "example_prompts": list(model.prompts[:EXAMPLES])}
        facts = {"id": name, "object": "model", "created": server.started, "owned_by": "ditlab"}
        return {**facts, "labels": list(model.names), **takes}

    @app.get("/v1/models", responses={401: errors[401]}, dependencies=key)
    async def models() -> dict[str, Any]:
        """List the models."""
        return {"object": "list", "data": [describe(name) for name in server.models]}

    @app.get("/v1/models/{model:path}", responses={k: errors[k] for k in (401, 404)}, dependencies=key)
    async def model(model: str) -> dict[str, Any]:
        """Describe a model."""
        return describe(server.find(model)[0])

    @app.get("/health")
    async def health() -> dict[str, str]:
        """Report that the server responds."""
        return {"status": "ok"}

    @app.get("/metrics", response_class=PlainTextResponse)
    async def metrics() -> PlainTextResponse:
        """Metrics in Prometheus' text format."""
        return PlainTextResponse(server.metrics(), media_type="text/plain; version=0.0.4; charset=utf-8")

    endpoints = list(app.routes)

    # Without these, the page, which is mounted at /, would answer.
    @app.api_route("/v1/{path:path}", methods=METHODS, include_in_schema=False)
    @app.api_route("/health", methods=METHODS, include_in_schema=False)
    @app.api_route("/metrics", methods=METHODS, include_in_schema=False)
    async def no_endpoint(http: HttpRequest) -> None:
        """405 for another method of an endpoint, 404 for no endpoint."""
        path = http.url.path
        found = [route for route in endpoints if route.matches(http.scope)[0] is Match.PARTIAL]
        if found:
            allowed = ", ".join(sorted({method for route in found for method in getattr(route, "methods", ())}))
            raise HTTPException(405, f"{http.method} {path}: the method must be {allowed}", {"Allow": allowed})
        if path in NOT_SUPPORTED:
            raise RequestError(404, NOT_SUPPORTED[path], code="not_supported")
        raise RequestError(404, f"no endpoint {path[:100]}; the endpoints are listed at /docs", code="not_found")

    app.add_middleware(ApiMiddleware, key=server.key, error_response=error_response)
    if cors:  # the outermost: a preflight request has no API key
        app.add_middleware(
            CORSMiddleware, allow_origins=list(cors), allow_methods=["GET", "POST"], allow_headers=["*"],
            expose_headers=["Retry-After"],
        )  # fmt: skip
    return app
