"""A local copy of images at a URL: of a data set on the Hugging Face hub, or of what fsspec reads (s3, gs, http, ...)."""

from __future__ import annotations

import hashlib
from concurrent.futures import ThreadPoolExecutor
from logging import CRITICAL
from pathlib import Path

from ditlab.data.source import Once, call
from ditlab.errors import UserError, nearest
from ditlab.runtime.files import cache_home

_HUB = "hf://datasets/"
_THREADS = 8
COMPLETE = ".complete"  # file next to a copy, written when it is whole


def local_copy(url: str, once: Once = call) -> Path:
    """The folder or file that is a copy of ``url``, downloaded by one process at the first use.

    The copy is under XDG_CACHE_HOME/ditlab (``hf://datasets/OWNER/NAME[@REVISION]``: in the hub's cache) and is not compared
    with the URL again: delete it to download it again. Raises a UserError if the URL cannot be read.
    """
    return Path(once(lambda: str(_hub(url) if url.startswith(_HUB) else _fsspec(url))))


def _hub(url: str) -> Path:
    name, _, revision = url.removeprefix(_HUB).rstrip("/").partition("@")
    if name.count("/") != 1:
        raise UserError(f"{url} names no data set; expected {_HUB}OWNER/NAME")
    try:
        import huggingface_hub
    except ImportError as error:
        raise UserError(f"{url} needs the package huggingface_hub; pip install 'ditlab[data]'") from error
    huggingface_hub.logging.set_verbosity(CRITICAL)  # the error below reports a failure
    try:
        return Path(huggingface_hub.snapshot_download(name, repo_type="dataset", revision=revision or None))
    except Exception as error:  # the hub's client raises the errors of the HTTP library it uses
        raise UserError(
            f"cannot download {url} ({type(error).__name__}); check the name and the connection, `hf auth login` for a "
            "private data set, or give a local folder"
        ) from error


def _fsspec(url: str) -> Path:
    import fsspec

    url = url.rstrip("/")
    copy = cache_home() / "data" / hashlib.sha256(url.encode()).hexdigest()[:16] / (url.rsplit("/", 1)[-1] or "data")
    done = copy.parent / COMPLETE
    if done.exists():
        return copy
    try:
        system, root = fsspec.url_to_fs(url)
        files = [root] if system.isfile(root) else system.find(root)
        if not files:
            raise FileNotFoundError("there are no files")

        def fetch(file: str) -> None:
            relative = file.removeprefix(root).lstrip("/")
            local = copy / relative if relative else copy
            if not local.exists():
                part = local.with_name(f".{local.name[:200]}.part")
                part.parent.mkdir(parents=True, exist_ok=True)
                system.get_file(file, str(part))
                part.rename(local)

        with ThreadPoolExecutor(_THREADS, "download") as pool:
            list(pool.map(fetch, files))
        done.touch()
    except Exception as error:  # the errors of fsspec's filesystems have no common base
        reason = " ".join(str(error).split()) or type(error).__name__
        unknown = isinstance(error, ValueError) and "Protocol not known" in reason
        hint = (
            nearest(url.split("://")[0], fsspec.available_protocols()) if unknown else "run the same command to go on"
        )
        raise UserError(f"cannot download {url} ({reason}); {hint}") from error
    return copy
