"""What stands before the API: the key, and how much a client may send, both before anything is read."""

from __future__ import annotations

from collections.abc import Callable
from hmac import compare_digest

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

LARGEST = 2**18  # bytes of a request to the API


class Guard:
    """Asks for the key on every path of the API, and reads no more of a request than LARGEST bytes.

    Args:
        app: what is guarded.
        key: that clients must show; empty: none.
        refuse: makes the answer of a status, a message and a short name for programs.
    """

    def __init__(self, app: ASGIApp, key: str, refuse: Callable[[int, str, str], ASGIApp]):
        self.app, self.key, self.refuse = app, key, refuse

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or answer it."""
        if scope["type"] != "http" or not scope["path"].startswith("/v1"):
            await self.app(scope, receive, send)
            return
        shown = Headers(scope=scope).get("authorization", "").encode()
        if self.key and not compare_digest(shown, f"Bearer {self.key}".encode()):
            answer = self.refuse(401, "a key is needed: Authorization: Bearer KEY", "invalid_api_key")
            await answer(scope, receive, send)
            return
        body, more = b"", True
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                return
            body, more = body + message.get("body", b""), message.get("more_body", False)
            if len(body) > LARGEST:
                answer = self.refuse(413, f"a request is at most {LARGEST:,} bytes", "too_large")
                await answer(scope, receive, send)
                return
        given: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

        async def again() -> Message:
            return given.pop() if given else await receive()

        await self.app(scope, again, send)
