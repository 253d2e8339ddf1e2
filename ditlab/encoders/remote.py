"""A latent cache at a URL: shards found there are downloaded to a local folder, the others are encoded and uploaded.

A shard's rows file is uploaded after its moments and the manifest after all shards, each to a temporary name that is
then renamed, so an interrupted upload or download can be resumed. If both sides have a shard, the URL's replaces the
local one.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from ditlab.data import Dataset
from ditlab.encoders import shards
from ditlab.encoders.autoencoder import Autoencoder
from ditlab.encoders.cache import begin, cache_key, encode, shard_names
from ditlab.errors import UserError, nearest
from ditlab.runtime import files
from ditlab.runtime.distributed import ALONE, Processes

T = TypeVar("T")
THREADS = 8  # shards that a process downloads or uploads at the same time
MARK = "url"  # file in the local folder: the URL that it is a complete copy of


class RemoteCache:
    """The folder of a cache at a URL; a UserError if fsspec does not know or cannot use its protocol."""

    def __init__(self, url: str):
        import fsspec

        self.url = url.rstrip("/")
        with self._remote_errors("open"):
            try:
                self._files, root = fsspec.url_to_fs(url)
            except (ImportError, ValueError) as error:
                known = nearest(url.split("://")[0], fsspec.available_protocols())
                hint = "" if isinstance(error, ImportError) else f"; {known}"
                raise UserError(f"--latents {url}: {error}{hint}") from error
        self._root = root.rstrip("/")

    @contextmanager
    def _remote_errors(self, doing: str) -> Iterator[None]:
        try:
            yield
        except UserError:
            raise
        except Exception as error:  # the errors of fsspec's filesystems have no common base
            reason = " ".join(str(error).split()) or type(error).__name__
            raise UserError(f"cannot {doing} {self.url} ({reason}); run the same command to resume") from error

    def _fetch(self, name: str, fetch: Callable[[str], T], check: Callable[[T], object]) -> T | None:
        """Download a file with ``fetch``, once more if it is damaged; None if it does not exist."""
        damage = ""
        for _ in range(2):
            with self._remote_errors(f"fetch {name} from"):
                try:
                    value = fetch(f"{self._root}/{name}")
                except FileNotFoundError:
                    return None
            try:
                check(value)
                return value
            except shards.DAMAGED as error:
                damage = " ".join(str(error).split())
        advice = f"delete {name.split('.')[0]}{shards.ROWS} there and encode again, which rebuilds this shard"
        raise UserError(f"{self.url}/{name} is damaged ({damage}); {advice}")

    def read(self, name: str, check: Callable[[bytes], object] = bytes) -> bytes | None:
        """Download a small file; None if it does not exist. ``check`` raises DAMAGED if the content is damaged."""
        return self._fetch(name, self._files.cat_file, check)

    def write(self, name: str, content: bytes) -> None:
        """Upload a small file; it becomes visible when it is complete."""
        with self._remote_errors(f"send {name} to"):
            self._files.makedirs(self._root, exist_ok=True)
            self._files.pipe_file(f"{self._root}/.{name}.part", content)
            self._files.mv(f"{self._root}/.{name}.part", f"{self._root}/{name}")

    def fetch_shard(self, folder: Path, shard: str, flip: object, checksum: int | None) -> bool:
        """Download what ``folder`` lacks of a shard, the rows file last; False if the URL does not have all of it.

        ``checksum`` is that of the rows file, None if not known.
        """
        path = shards.rows_file(folder, shard)
        content = self.read(path.name, lambda content: shards.read_rows(content, checksum))
        if content is None:
            return False
        if path.exists() and path.read_bytes() == content and shards.is_whole(folder, shard, flip):
            return True
        shards.remove_file(path)
        rows = shards.read_rows(content)
        for column, kind in enumerate(shards.kinds(flip), start=2):
            if not self._fetch_moments(folder / f"{shard}.{kind}.npy", rows[:, column]):
                return False
        files.write_file(path, content)
        return True

    def _fetch_moments(self, path: Path, sums: np.ndarray) -> bool:
        temporary = path.with_name(f".{path.name}.part")

        def fetch(where: str) -> Path:
            self._files.get_file(where, str(temporary))
            return temporary

        try:
            with suppress(*shards.DAMAGED):
                shards.check_moments(path, sums)
                return True
            if self._fetch(path.name, fetch, lambda fetched: shards.check_moments(fetched, sums)) is None:
                return False
            with temporary.open("rb") as file:
                os.fsync(file.fileno())
            temporary.replace(path)
            files.sync_folder(path.parent)
            return True
        except OSError as error:
            raise files.cannot_write(path, error) from error
        finally:
            temporary.unlink(missing_ok=True)

    def send_shard(self, folder: Path, shard: str, flip: object) -> None:
        """Upload a complete shard, the rows file last."""
        with self._remote_errors(f"send {shard} to"):
            self._files.makedirs(self._root, exist_ok=True)
            for kind in shards.kinds(flip):
                name = f"{shard}.{kind}.npy"
                self._files.put_file(str(folder / name), f"{self._root}/{name}")
        path = shards.rows_file(folder, shard)
        self.write(path.name, path.read_bytes())

    def begin(self, folder: Path, key: dict[str, object]) -> tuple[tuple[str, ...] | None, dict[str, Any]]:
        """Prepare both sides; returns the skipped images if nothing is left to do, and the URL's manifest otherwise."""
        mark = folder / MARK
        if mark.exists() and mark.read_text() == self.url and (skipped := begin(folder, key)) is not None:
            return skipped, {}
        content = self.read(shards.MANIFEST)
        manifest = {} if content is None else shards.parse_manifest(content, self.url)
        if content is not None:
            shards.check_key(self.url, manifest, key)
        begin(folder, key)
        shards.remove_file(mark)
        unfinished = shards.manifest_text({**key, "complete": False})
        files.write_file(folder / shards.MANIFEST, unfinished)  # even if it is complete, since shards may be replaced
        if content is None:
            with self._remote_errors("list"):
                others = self._files.glob(f"{self._root}/*{shards.ROWS}")
            if others:
                advice = "delete them or give another --latents"
                raise UserError(f"{self.url} contains latents without a {shards.MANIFEST}; {advice}")
            self.write(shards.MANIFEST, unfinished.encode())
        return None, manifest

    def finish(self, folder: Path) -> None:
        """Upload the manifest after all shards; record that the local folder is a complete copy."""
        content = (folder / shards.MANIFEST).read_bytes()
        if self.read(shards.MANIFEST) != content:
            self.write(shards.MANIFEST, content)
        files.write_file(folder / MARK, self.url)


def _sums(manifest: dict[str, Any]) -> dict[str, int | None]:
    """Shards that the URL may have, each with the checksum of its rows file if the manifest there has it."""
    if manifest.get("complete"):
        return {shards.shard_of(name): checksum for name, (_, checksum) in manifest["rows"].items()}
    return dict.fromkeys(shard_names(manifest.get("images", 0)))


def _take(manifest: dict[str, Any], sums: dict[str, int | None], folder: Path, flip: bool) -> None:
    """Complete the local folder with the URL's manifest, if all its shards are there."""
    if manifest.get("complete") and all(shards.is_whole(folder, shard, flip, sums[shard]) for shard in sums):
        files.write_file(folder / shards.MANIFEST, shards.manifest_text(manifest))


def encode_remote(
    url: str,
    dataset: Dataset,
    autoencoder: Autoencoder,
    folder: Path,
    *,
    flip: bool,
    progress: Callable[[str, int, int], None] = lambda what, done, total: None,
    processes: Processes = ALONE,
    **options: Any,
) -> tuple[str, ...]:
    """``encode`` for a cache at a URL: download the shards found there into ``folder``, encode and upload the others.

    Each process downloads, encodes and uploads its own share of the shards. If the folder is a complete copy, the URL is
    not accessed.

    ``folder`` is the local copy; ``options`` are ``batch`` and ``device`` of ``encode``. ``progress`` is called with
    "fetching" or "sending" and shards, or "encoding" and images: number done, number in all. Returns the images skipped
    because they could not be read. Raises a UserError as ``encode``, or if the URL cannot be reached or is damaged.
    """
    remote, key = RemoteCache(url), cache_key(dataset, autoencoder, flip)
    skipped, manifest = processes.broadcast_from_main(lambda: remote.begin(folder, key))
    if skipped is not None:
        return skipped
    own = shard_names(len(dataset))[processes.rank :: processes.size]
    sums = _sums(manifest)
    sent: dict[str, Future[None]] = {}
    with ThreadPoolExecutor(THREADS) as pool:
        try:
            mine = [shard for shard in own if shard in sums]
            fetched = pool.map(lambda shard: remote.fetch_shard(folder, shard, flip, sums[shard]), mine)
            present: set[str] = set()
            for number, (shard, whole) in enumerate(zip(mine, fetched, strict=True), start=1):
                present |= {shard} if whole else set()
                progress("fetching", number, len(mine))
            processes.barrier()
            processes.broadcast_from_main(lambda: _take(manifest, sums, folder, flip))

            def send(shard: str) -> None:
                for earlier in list(sent.values()):
                    if earlier.done():
                        earlier.result()  # a failed upload ends the work
                if shard not in present and shard not in sent:
                    sent[shard] = pool.submit(remote.send_shard, folder, shard, flip)

            skipped = encode(
                dataset, autoencoder, folder, flip=flip, progress=partial(progress, "encoding"), finished=send,
                processes=processes, **options,
            )  # fmt: skip
            for shard in own:
                if shards.rows_file(folder, shard).exists():
                    send(shard)
            for number, future in enumerate(sent.values(), start=1):
                future.result()
                progress("sending", number, len(sent))
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    processes.barrier()
    processes.broadcast_from_main(lambda: remote.finish(folder))
    return skipped
