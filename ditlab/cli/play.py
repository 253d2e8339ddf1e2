"""``ditlab play``: models on a page, and behind an HTTP API."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from ditlab.cli.flags import parse
from ditlab.errors import UserError
from ditlab.runtime.console import log

MOST = 1_000_000  # of anything that is limited


@dataclass(frozen=True)
class PlayOptions:
    """Models on a page in a browser, and behind an HTTP API in the shape that the openai client asks for."""

    models: Annotated[tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="RUN...")] = ("fashion",)
    """Run folders, shipped models, diffusers' pipelines or hub ids."""
    runs: str = "runs"
    """Folder whose runs and studies the page shows."""
    host: str = "127.0.0.1"
    """Address to listen on; beyond this machine only with a key in DITLAB_API_KEY."""
    port: int = 7860
    """Its port; 0 is any that is free."""
    images: int = 16
    """Images a request, at most."""
    steps: int = 250
    """Sampling steps of a request, at most."""
    seconds: float = 120.0
    """After which a request is given up."""
    together: int = 64
    """Images of a model under way at a time."""


def play(arguments: list[str]) -> None:
    """Look at models in a browser, and serve them over HTTP."""
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
