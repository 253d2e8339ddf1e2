"""``ditlab play``: a web page and an HTTP API for models."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from ditlab.cli.flags import parse
from ditlab.errors import UserError
from ditlab.runtime.console import log

MOST = 1_000_000  # upper bound of every limit


@dataclass(frozen=True)
class PlayOptions:
    """Serve models as a web page and as an HTTP API that the openai client can call."""

    models: Annotated[tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="RUN...")] = ("fashion",)
    """Run folders, shipped models, diffusers pipelines or hub ids."""
    runs: str = "runs"
    """Folder of the runs and studies on the page."""
    host: str = "127.0.0.1"
    """Address to listen on; one that other machines can reach needs a key in DITLAB_API_KEY."""
    port: int = 7860
    """Port to listen on; 0 picks a free one."""
    images: int = 16
    """Maximum images of a request."""
    steps: int = 250
    """Maximum sampling steps of a request."""
    seconds: float = 120.0
    """Seconds after which a request is cancelled."""
    together: int = 64
    """Maximum images of one model in progress at a time, over all requests."""


def play(arguments: list[str]) -> None:
    """Serve models as a web page and an HTTP API."""
    options = parse(PlayOptions, arguments, "play")
    for name in ("images", "steps", "seconds", "together"):
        if not 0 < getattr(options, name) < MOST:
            raise UserError(f"--{name} {getattr(options, name)} must be above 0 and below {MOST:,}")
    if options.together < options.images:
        raise UserError(f"--together {options.together} must hold a request of {options.images} images (--images)")
    try:
        from ditlab.playground.server import Limits, serve
    except ModuleNotFoundError as error:
        raise UserError(f"serving needs {error.name}: pip install 'ditlab[play]'") from error
    from ditlab.runtime.device import default_device

    limits = Limits(options.images, options.steps, options.seconds)
    place = (options.host, options.port)
    serve(options.models, Path(options.runs), default_device(), *place, limits, options.together, log)
