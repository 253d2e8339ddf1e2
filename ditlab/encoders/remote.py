"""The encoded cache behind a URL: what is there is fetched into a local folder, what is not is encoded there and sent.

A shard's rows file is sent after its moments, and the manifest after all shards, each by a name of its own and a rename: what
was stopped half-way, on either side, is taken up again. Where both sides have a shard, the URL's is the one.
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
import torch

from ditlab.data import Dataset
from ditlab.encoders.autoencoder import Autoencoder
from ditlab.encoders.cache import begin, encode, identity, shard_names
from ditlab.encoders.shards import (
    BROKEN,
    MANIFEST,
    ROWS,
    check_moments,
    discard,
    is_whole,
    kinds,
    manifest_text,
    parse_manifest,
    read_rows,
    refuse_others,
    rows_file,
    shard_of,
)
from ditlab.errors import UserError, nearest
from ditlab.runtime import files
from ditlab.runtime.distributed import ALONE, Processes

T = TypeVar("T")
THREADS = 8  # shards fetched or sent at once by a process
MARK = "url"  # a file in the local folder: the URL of which it is a whole copy


def is_url(place: str) -> bool:
    """Whether a place is one that fsspec knows by its protocol, and no path."""
    return "://" in place


class Remote:
    """A cache's folder behind a URL.

    Raises:
        UserError: fsspec does not know the protocol, or the package that speaks it is not installed.
    """

    def __init__(self, url: str):
        import fsspec

        self.url = url.rstrip("/")
        with self._asking("open"):
            try:
                self._files, root = fsspec.url_to_fs(url)
            except (ImportError, ValueError) as error:
                known = nearest(url.split("://")[0], fsspec.available_protocols())
                hint = "" if isinstance(error, ImportError) else f"; {known}"
                raise UserError(f"--latents {url}: {error}{hint}") from error
        self._root = root.rstrip("/")

    @contextmanager
    def _asking(self, doing: str) -> Iterator[None]:
        try:
            yield
        except UserError:
            raise
        except Exception as error:  # every filesystem has errors of its own, of no common kind
            reason = " ".join(str(error).split()) or type(error).__name__
            raise UserError(f"cannot {doing} {self.url} ({reason}); the same command goes on from here") from error

    def _fetch(self, name: str, fetch: Callable[[str], T], check: Callable[[T], object]) -> T | None:
        """What ``fetch`` brings of a file, None where there is no such; a damaged one is fetched again once."""
        damage = ""
        for _ in range(2):
            with self._asking(f"fetch {name} from"):
                try:
                    value = fetch(f"{self._root}/{name}")
                except FileNotFoundError:
                    return None
            try:
                check(value)
                return value
            except BROKEN as error:
                damage = " ".join(str(error).split())
        raise UserError(
            f"{self.url}/{name} is damaged ({damage}); delete {name.split('.')[0]}{ROWS} there and encode again, which "
            "makes this shard anew"
        )

    def read(self, name: str, check: Callable[[bytes], object] = bytes) -> bytes | None:
        """A small file, None where there is no such.

        Args:
            name: of the file.
            check: raises BROKEN where this is not what was sent.
        """
        return self._fetch(name, self._files.cat_file, check)

    def write(self, name: str, content: bytes) -> None:
        """Send a small file, which appears whole."""
        with self._asking(f"send {name} to"):
            self._files.makedirs(self._root, exist_ok=True)
            self._files.pipe_file(f"{self._root}/.{name}.part", content)
            self._files.mv(f"{self._root}/.{name}.part", f"{self._root}/{name}")

    def fetch_shard(self, folder: Path, shard: str, flip: object, checksum: int | None) -> bool:
        """Bring a shard into ``folder``, as far as it is not there; False where the URL does not have all of it.

        Args:
            folder: where files appear whole, the rows last.
            shard: which.
            flip: whether mirrored images belong to it.
            checksum: of its rows, where it is known.
        """
        path = rows_file(folder, shard)
        content = self.read(path.name, lambda content: read_rows(content, checksum))
        if content is None:
            return False
        if path.exists() and path.read_bytes() == content and is_whole(folder, shard, flip):
            return True
        discard(path)
        rows = read_rows(content)
        for column, kind in enumerate(kinds(flip), start=2):
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
            with suppress(*BROKEN):
                check_moments(path, sums)
                return True
            if self._fetch(path.name, fetch, lambda fetched: check_moments(fetched, sums)) is None:
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
        """Send a whole shard, the rows last."""
        with self._asking(f"send {shard} to"):
            self._files.makedirs(self._root, exist_ok=True)
            for kind in kinds(flip):
                name = f"{shard}.{kind}.npy"
                self._files.put_file(str(folder / name), f"{self._root}/{name}")
        path = rows_file(folder, shard)
        self.write(path.name, path.read_bytes())

    def begin(self, folder: Path, wanted: dict[str, object]) -> tuple[tuple[str, ...] | None, dict[str, Any]]:
        """Make both sides ready; gives the images left out where all is done, else the manifest that is at the URL.

        Raises:
            UserError: one of them holds a cache made from other things, or cannot be written.
        """
        mark = folder / MARK
        if mark.exists() and mark.read_text() == self.url and (skipped := begin(folder, wanted)) is not None:
            return skipped, {}
        content = self.read(MANIFEST)
        manifest = {} if content is None else parse_manifest(content, self.url)
        if content is not None:
            refuse_others(self.url, manifest, wanted)
        begin(folder, wanted)
        discard(mark)
        unfinished = manifest_text({**wanted, "complete": False})
        files.write_file(folder / MANIFEST, unfinished)  # also where it is complete: shards may be replaced
        if content is None:
            with self._asking("look into"):
                others = self._files.glob(f"{self._root}/*{ROWS}")
            if others:
                raise UserError(f"{self.url} holds latents without a {MANIFEST}: delete them or give another --latents")
            self.write(MANIFEST, unfinished.encode())
        return None, manifest

    def finish(self, folder: Path) -> None:
        """Send the manifest, when all shards are there; remember that the local folder is the same."""
        content = (folder / MANIFEST).read_bytes()
        if self.read(MANIFEST) != content:
            self.write(MANIFEST, content)
        files.write_file(folder / MARK, self.url)


def _sums(manifest: dict[str, Any]) -> dict[str, int | None]:
    """The shards to look for at the URL, each with the checksum of its rows where the manifest there has it."""
    if manifest.get("complete"):
        return {shard_of(name): checksum for name, (_, checksum) in manifest["rows"].items()}
    return dict.fromkeys(shard_names(manifest.get("images", 0)))


def _take(manifest: dict[str, Any], sums: dict[str, int | None], folder: Path, flip: bool) -> None:
    """Make the local folder complete by the URL's manifest, where every shard that it names has come."""
    if manifest.get("complete") and all(is_whole(folder, shard, flip, sums[shard]) for shard in sums):
        files.write_file(folder / MANIFEST, manifest_text(manifest))


def encode_behind(
    url: str,
    dataset: Dataset,
    autoencoder: Autoencoder,
    folder: Path,
    *,
    flip: bool,
    batch: int = 64,
    device: torch.device | str = "cpu",
    progress: Callable[[str, int, int], None] = lambda what, done, total: None,
    processes: Processes = ALONE,
) -> tuple[str, ...]:
    """``encode`` for a cache behind a URL: fetches what is there into ``folder``, encodes the rest, and sends that.

    Each process fetches, encodes and sends its own share of the shards. A folder that is a whole copy is used as it is, without
    a look at the URL.

    Args:
        url: of the cache.
        dataset: the images.
        autoencoder: makes the moments.
        folder: the local copy.
        flip: encode the mirrored images too.
        batch: images at a time.
        device: where the encoder runs.
        progress: called with "fetching" or "sending" and shards, or "encoding" and images: done, and in all.
        processes: that share the work.

    Returns:
        Images left out since they could not be read, each with its reason.

    Raises:
        UserError: as ``encode``, of either side; the URL cannot be reached; or what is there is damaged.
    """
    remote, wanted = Remote(url), identity(dataset, autoencoder, flip)
    skipped, manifest = processes.broadcast_from_main(lambda: remote.begin(folder, wanted))
    if skipped is not None:
        return skipped
    shards = shard_names(len(dataset))[processes.rank :: processes.size]
    sums = _sums(manifest)
    sent: dict[str, Future[None]] = {}
    with ThreadPoolExecutor(THREADS) as pool:
        try:
            mine = [shard for shard in shards if shard in sums]
            fetched = pool.map(lambda shard: remote.fetch_shard(folder, shard, flip, sums[shard]), mine)
            there: set[str] = set()
            for number, (shard, whole) in enumerate(zip(mine, fetched, strict=True), start=1):
                there |= {shard} if whole else set()
                progress("fetching", number, len(mine))
            processes.barrier()
            processes.broadcast_from_main(lambda: _take(manifest, sums, folder, flip))

            def send(shard: str) -> None:
                for earlier in list(sent.values()):
                    if earlier.done():
                        earlier.result()  # what could not be sent ends the work now
                if shard not in there and shard not in sent:
                    sent[shard] = pool.submit(remote.send_shard, folder, shard, flip)

            skipped = encode(
                dataset, autoencoder, folder, flip=flip, batch=batch, device=device,
                progress=partial(progress, "encoding"), finished=send, processes=processes,
            )  # fmt: skip
            for shard in shards:
                if rows_file(folder, shard).exists():
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
