"""The server process: loads models, listens on an address, and shuts down after accepted requests are finished."""

from __future__ import annotations

import asyncio
import ipaddress
import os
import signal
import socket
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
import uvicorn
from fastapi import FastAPI

from ditlab.errors import UserError
from ditlab.interop.find import find_model
from ditlab.playground.api import build_app
from ditlab.playground.backend import Backend
from ditlab.playground.compute import run_on_compute_thread
from ditlab.playground.page import mount_page
from ditlab.playground.served import Limits, ModelServer

KEY_VARIABLE = "DITLAB_API_KEY"
SIGNALS = (signal.SIGINT, signal.SIGTERM)
SEND_TIME = 1.0  # seconds for sending the last responses


def name_models(sources: Sequence[str]) -> dict[str, str]:
    """Sources by model name, the last part of a path or hub id: the name of ``runs/fashion`` is fashion.

    Raises:
        UserError: two models have the same name.
    """
    named: dict[str, str] = {}
    for source in sources:
        path = Path(source)
        path = path.resolve() if path.exists() else path
        name = path.parent.name if path.suffix == ".safetensors" else path.name
        if name in named:
            raise UserError(f"two models have the name {name}; serve one of them, or rename a folder")
        named[name] = source
    return named


def serve(
    sources: Sequence[str],
    runs: Path,
    device: torch.device,
    host: str,
    port: int,
    limits: Limits,
    max_images: int,
    log: Callable[[str], None],
    cors: Sequence[str] = (),
) -> None:
    """Serve until SIGINT or SIGTERM; then finish the accepted requests and return.

    Args:
        sources: run folders, shipped models or hub ids.
        runs: the folder whose runs and studies the page shows.
        device: where the models run.
        host: address to listen on; another than a loopback address needs an API key in DITLAB_API_KEY.
        port: port to listen on; 0 selects a free one.
        limits: of one request.
        max_images: images of a model that are denoised at the same time.
        log: writes one line to the console.
        cors: origins whose pages may call the API from a browser; ``*`` is any.

    Raises:
        UserError: a model cannot be loaded or makes clips, the address is not available, or it needs an API key.
    """
    named = name_models(sources)
    key = os.environ.get(KEY_VARIABLE, "")
    if not key and not _is_loopback(host):
        raise UserError(
            f"--host {host} accepts other machines and needs an API key; set {KEY_VARIABLE}, or use --host 127.0.0.1"
        )
    pipelines = {
        name: run_on_compute_thread(lambda source=source: find_model(source).to(device))
        for name, source in named.items()
    }
    for name, model in pipelines.items():
        if model.clips:
            raise UserError(f"{name} makes clips, and the page shows images")
    listener = bind(host, port)
    models = ModelServer(pipelines, limits, max_images, key=key)
    try:
        app = build_page_app(models, Backend(models, named, runs), cors)
        url = f"http://{f'[{host}]' if ':' in host else host}:{listener.getsockname()[1]}"
        log(f"serving {', '.join(named)} at {url}, {'with' if key else 'without'} an API key; Ctrl-C stops the server")
        for name in SIGNALS:  # uvicorn raises the signal again after its shutdown
            signal.signal(name, lambda *_: None)
        Server(app, models).run([listener])
        for name in SIGNALS:  # a second signal interrupts work of the page that is still running
            signal.signal(name, signal.SIG_DFL)
    finally:
        models.close()
        listener.close()


def build_page_app(models: ModelServer, backend: Backend, cors: Sequence[str] = ()) -> FastAPI:
    """The application with the API and the page."""

    async def build() -> FastAPI:
        return mount_page(build_app(models, cors), backend, models.key)

    return asyncio.run(build())  # without a running event loop gradio opens one and never closes it


class Server(uvicorn.Server):
    """Shuts down once all images are sent: an open page keeps its event stream open, and uvicorn would wait for it."""

    def __init__(self, app: FastAPI, models: ModelServer):
        grace = int(models.limits.timeout) + 1
        super().__init__(uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=grace))
        self.models = models

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Accept no more requests, finish those accepted, and close all connections."""
        closing = asyncio.create_task(self._close_connections())
        await super().shutdown(sockets)
        closing.cancel()

    async def _close_connections(self) -> None:
        while self.models.active_requests or any(batcher.busy for batcher in self.models.batchers.values()):
            await asyncio.sleep(SEND_TIME / 10)
        await asyncio.sleep(SEND_TIME)
        self.force_exit = True


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def bind(host: str, port: int) -> socket.socket:
    """A socket bound to an address.

    Raises:
        UserError: the address is not available.
    """
    # asyncio disables Nagle's algorithm only for sockets whose protocol is TCP; it would delay small responses by 40 ms.
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
    except (OSError, OverflowError) as error:
        listener.close()
        raise UserError(f"cannot listen on {host}, port {port} ({error}); use another --port") from error
    return listener
