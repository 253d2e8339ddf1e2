"""``ditlab play``: a web page and an HTTP API for models."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated
from urllib.parse import urlsplit

import tyro

from ditlab.cli.flags import parse
from ditlab.errors import UserError
from ditlab.runtime.console import log

MAX_LIMIT = 1_000_000  # of any limit


@dataclass(frozen=True)
class PlayOptions:
    """Serve models on a web page, and through an HTTP API that follows OpenAI's images API."""

    models: Annotated[tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="MODEL...")] = ("fashion",)
    """Run folders, shipped models, diffusers pipelines or hub ids."""
    runs: str = "runs"
    """Folder of the training runs and studies that the page shows."""
    device: str = ""
    """cpu, cuda, cuda:1 or mps; empty: a GPU if there is one."""
    host: str = "127.0.0.1"
    """Address to listen on; another than a loopback address needs an API key in DITLAB_API_KEY."""
    port: int = 7860
    """Port to listen on; 0 selects a free one."""
    max_images: int = 16
    """Images per request, at most."""
    max_steps: int = 250
    """Sampling steps per request, at most."""
    timeout: float = 120.0
    """Seconds after which a request fails."""
    batch: int = 64
    """Images of a model that are denoised together, at most."""
    cors: str = ""
    """Origins, separated by commas, whose pages may call the API from a browser, such as https://example.org; * is any.
    Empty: none."""


def play(arguments: list[str]) -> None:
    """Serve models on a web page and over HTTP."""
    options = parse(PlayOptions, arguments, "play")
    for name in ("max_images", "max_steps", "timeout", "batch"):
        if not 0 < getattr(options, name) < MAX_LIMIT:
            flag = name.replace("_", "-")
            raise UserError(f"--{flag} {getattr(options, name)} must be above 0 and below {MAX_LIMIT:,}")
    if options.batch < options.max_images:
        raise UserError(f"--batch {options.batch} must be at least --max-images {options.max_images}")
    try:
        from ditlab.playground.server import Limits, serve
    except ModuleNotFoundError as error:
        raise UserError(f"serving needs {error.name}: pip install 'ditlab[play]'") from error
    from ditlab.runtime.device import select_device

    cors = [_origin(origin.strip()) for origin in options.cors.split(",") if origin.strip()]
    limits, runs = Limits(options.max_images, options.max_steps, options.timeout), Path(options.runs)
    serve(
        options.models,
        runs,
        select_device(options.device),
        options.host,
        options.port,
        limits,
        options.batch,
        log,
        cors,
    )


def _origin(text: str) -> str:
    """An origin as browsers send it, or ``*``.

    Raises:
        UserError: something else.
    """
    url = urlsplit(text)
    if text != "*" and (
        url.scheme not in ("http", "https") or text != f"{url.scheme}://{url.netloc}" or not url.netloc
    ):
        raise UserError(f"--cors {text}: an origin is a scheme and a host, such as https://example.org:8000; * is any")
    return text
