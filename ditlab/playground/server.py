"""The server: models by name, an address to listen on, and an end that finishes what was taken."""

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

from ditlab.errors import UserError
from ditlab.interop.find import find_model
from ditlab.playground.api import Limits, Served, build_app
from ditlab.playground.compute import computed
from ditlab.playground.page import mount_page
from ditlab.playground.studio import Studio

KEY = "DITLAB_API_KEY"
ENDING = (signal.SIGINT, signal.SIGTERM)
ANSWER = 1.0  # seconds in which the last images are sent off


def name_models(sources: Sequence[str]) -> dict[str, str]:
    """What models are found by, by the last part of it: ``runs/fashion`` is called fashion.

    Raises:
        UserError: two are called the same.
    """
    named: dict[str, str] = {}
    for source in sources:
        path = Path(source)
        path = path.resolve() if path.exists() else path
        called = path.parent.name if path.suffix == ".safetensors" else path.name
        if called in named:
            raise UserError(f"two models are called {called}; serve one, or rename a folder")
        named[called] = source
    return named


def serve(
    sources: Sequence[str],
    runs: Path,
    device: torch.device,
    host: str,
    port: int,
    limits: Limits,
    most: int,
    log: Callable[[str], None],
) -> None:
    """Listen until told to stop; then finish what was taken, and return.

    Args:
        sources: what the models are found by.
        runs: the folder whose runs and studies the page shows.
        device: where the models are to lie.
        host: address to listen on; beyond this machine only with a key in the environment variable DITLAB_API_KEY.
        port: of it; 0 is any that is free.
        limits: of one request.
        most: images of a model under way at a time.
        log: writes one line to the console.

    Raises:
        UserError: a model or the address is not to be had, or the address is open to others without a key.
    """
    named = name_models(sources)
    key = os.environ.get(KEY, "")
    if not key and not _loopback(host):
        raise UserError(
            f"--host {host} is open to other machines, and there is no key; set {KEY}, or listen on 127.0.0.1"
        )
    models = {name: computed(lambda source=source: find_model(source).to(device)) for name, source in named.items()}
    listener = _bound(host, port)
    served = Served(models, limits, most, key=key)
    try:
        app = mount_page(build_app(served), Studio(served, named, runs), key)
        place = f"http://{f'[{host}]' if ':' in host else host}:{listener.getsockname()[1]}"
        log(f"{', '.join(models)} at {place}, {'with' if key else 'without'} a key; Ctrl-C ends it")
        grace = int(limits.seconds) + 1
        config = uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=grace)
        for name in ENDING:  # uvicorn ends well, and sends itself the signal once more then
            signal.signal(name, lambda *_: None)
        _Server(config, served).run([listener])
        for name in ENDING:  # work of the page that still goes on can be broken off
            signal.signal(name, signal.SIG_DFL)
    finally:
        served.close()
        listener.close()


class _Server(uvicorn.Server):
    """Ends when all images are made and answered; pages that stand open in a browser would keep their streams for ever."""

    def __init__(self, config: uvicorn.Config, served: Served):
        super().__init__(config)
        self.served = served

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Take no more, finish, and leave."""
        leaving = asyncio.create_task(self._leave())
        await super().shutdown(sockets)
        leaving.cancel()

    async def _leave(self) -> None:
        while self.served.answering or any(batcher.busy for batcher in self.served.batchers.values()):
            await asyncio.sleep(ANSWER / 10)
        await asyncio.sleep(ANSWER)
        self.force_exit = True


def _loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _bound(host: str, port: int) -> socket.socket:
    # Named as TCP, which is what makes asyncio send small answers at once, not 40 ms later (Nagle's algorithm).
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
    except (OSError, OverflowError) as error:
        listener.close()
        raise UserError(f"cannot listen on {host}, port {port} ({error}); choose another --port") from error
    return listener
