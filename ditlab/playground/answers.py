"""Errors in the shape that OpenAI's clients read."""

from __future__ import annotations

from fastapi.responses import JSONResponse


def error(status: int, message: str, param: str | None = None, code: str | None = None) -> JSONResponse:
    """An answer that says what was wrong.

    Args:
        status: of HTTP.
        message: what was wrong, and what would be right.
        param: the field that was.
        code: a short name of it, for programs.
    """
    kind = {429: "rate_limit_error"}.get(status, "invalid_request_error" if status < 500 else "server_error")
    return JSONResponse({"error": {"message": message, "type": kind, "param": param, "code": code}}, status)
