"""ASGI middleware in front of the API: checks the API key and limits the size of a request body."""

from __future__ import annotations

from collections.abc import Callable
from hmac import compare_digest

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ditlab.playground.schema import RequestError

MAX_BODY_BYTES = 2**18


class ApiMiddleware:
    """Requires the API key on every path under /v1, and reads at most MAX_BODY_BYTES of a request.

    Args:
        app: the application behind it.
        key: the API key; empty: none is required.
        error_response: builds the response from a status, a message and an error code.
    """

    def __init__(self, app: ASGIApp, key: str, error_response: Callable[[int, str, str], ASGIApp]):
        self.app, self.key, self.error_response = app, key, error_response

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Forward a request, or reject it."""
        if scope["type"] != "http" or not scope["path"].startswith("/v1"):
            await self.app(scope, receive, send)
            return
        authorization = Headers(scope=scope).get("authorization", "").encode()
        if self.key and not compare_digest(authorization, f"Bearer {self.key}".encode()):
            response = self.error_response(
                401, "missing or invalid API key; send the header Authorization: Bearer KEY", "invalid_api_key"
            )
            await response(scope, receive, send)
            return
        received = 0

        async def limited() -> Message:
            nonlocal received
            message = await receive()
            received += len(message.get("body", b""))
            if received > MAX_BODY_BYTES:
                raise RequestError(413, f"request body larger than {MAX_BODY_BYTES:,} bytes", code="too_large")
            return message

        await self.app(scope, limited, send)
