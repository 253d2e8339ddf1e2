"""Many images, made by one or several processes, written to disk batch by batch and resumed after a kill.

The state of an unfinished command is the folder ``.NAME.unfinished`` next to the output:

- ``settings.json``: what the images depend on; a command with other settings does not resume.
- ``done``: one byte per batch, 1 once its images are on disk.
- ``images.npy``: for an archive, preallocated for all images; each process writes its rows at their offset.

Memory holds one batch per process, whatever the number of images. A finished archive is ``images.npy`` copied into a zip in
chunks, so that its bytes do not depend on the number of processes or on interruptions.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import io
import json
import os
import shutil
import time
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO

import numpy as np

from ditlab.errors import UserError
from ditlab.pipelines.pictures import image_files
from ditlab.pipelines.pipeline import Pipeline
from ditlab.runtime import files
from ditlab.runtime.distributed import ALONE, Processes

SETTINGS, DONE, ROWS = "settings.json", "done", "images.npy"
SYNC_SECONDS = 2.0  # time between syncs to disk, at least: a power cut loses the batches since the last one
CHUNK = 2**24  # bytes copied at a time
MakeBatches = Callable[[Sequence[int]], Iterator[np.ndarray]]


def write_samples(
    out: Path,
    make: MakeBatches,
    shape: tuple[int, int, int, int],
    batch: int,
    labels: np.ndarray,
    names: Sequence[str],
    settings: Mapping[str, object],
    processes: Processes = ALONE,
    resumed: Callable[[int], None] = lambda images: None,
) -> None:
    """Write images to an ``.npz`` archive or a folder of PNGs, or resume a command that was interrupted.

    An archive has ADM's layout: ``arr_0`` uint8 (N, H, W, C), ``arr_1`` the labels int64 (N,).

    Args:
        out: the archive (.npz) or the folder. All processes must see its file system.
        make: returns an iterator over the batches that start at the given images, uint8 (B, H, W, C) each.
        shape: of all images, (N, H, W, C).
        batch: images in a batch; the last one may have fewer.
        labels: of the images, (N,), -1 for none.
        names: of the classes, for the names of PNG files.
        settings: everything the images depend on, as JSON; written into every PNG.
        processes: that share the batches.
        resumed: called with the number of images that are already on disk, before the others are made.

    Raises:
        UserError: the disk is full, another command is writing ``out``, or it was interrupted with other settings.
    """
    state = out.resolve().with_name(f".{out.resolve().name}.unfinished")
    archive = out.suffix == ".npz"
    with contextlib.ExitStack() as stack:

        def prepare() -> None:
            stack.enter_context(files.locked(state, "the unfinished samples in"))
            _prepare(out, state, shape, batch, settings, archive)

        processes.broadcast_from_main(prepare)
        done = np.fromfile(state / DONE, np.uint8)
        found = sum(min(batch, shape[0] - index * batch) for index in np.flatnonzero(done).tolist())
        processes.barrier()  # no process writes before all have read what is done
        resumed(found)
        missing = (np.flatnonzero(done == 0) * batch)[processes.rank :: processes.size].tolist()
        with _disk_errors(out):
            writer = stack.enter_context(_Writer(state, batch, (state / ROWS) if archive else None))
            for first, images in zip(missing, make(missing), strict=True):
                if not archive:
                    chosen = labels[first : first + len(images)]
                    for name, content in image_files(images, chosen, names, settings, first):
                        files.write_file(out / name, content)
                writer.add(first, images)
            writer.sync()
        processes.barrier()

        def finish() -> None:
            with _disk_errors(out):
                if archive:
                    _zip(state / ROWS, labels, out)
                (state / SETTINGS).unlink()  # first, so that a kill here leaves nothing to resume
                shutil.rmtree(state)

        processes.broadcast_from_main(finish)


def weights_digest(model: Pipeline) -> str:
    """The first 16 hex digits of the SHA-256 of a model's weights: equal for models that make the same images."""
    digest = hashlib.sha256()
    for module in (model.network, model.autoencoder):
        for name, tensor in module.state_dict().items():
            digest.update(name.encode())
            digest.update(tensor.detach().cpu().contiguous().numpy())
    return digest.hexdigest()[:16]


def _prepare(
    out: Path, state: Path, shape: tuple[int, ...], batch: int, settings: Mapping[str, object], archive: bool
) -> None:
    """Create the files of an unfinished command, or check that those on disk belong to this one."""
    wanted = json.loads(json.dumps({**settings, "images": list(shape), "batch": batch}))
    with _disk_errors(out):
        if out.is_file() if not archive else out.is_dir():
            raise FileExistsError(errno.EEXIST, f"a {'folder' if archive else 'file'} has this name")
        if (state / SETTINGS).exists():  # written last, so everything else is there
            try:
                known = json.loads((state / SETTINGS).read_text())
            except ValueError:
                known = {}
            for name in wanted.keys() | known.keys():
                if known.get(name) != wanted.get(name):
                    raise UserError(
                        f"{out} is unfinished, with {name} {known.get(name)!r} and not {wanted.get(name)!r}; resume it with "
                        f"the same settings, or delete {state} to start again"
                    )
            return
        if archive:
            _preallocate(state / ROWS, shape)
        (state / DONE).write_bytes(bytes(-(-shape[0] // batch)))
        files.write_file(state / SETTINGS, json.dumps(wanted, indent=2) + "\n")


def _preallocate(path: Path, shape: tuple[int, ...]) -> None:
    """An .npy file with its space reserved, so that a full disk is found before any image is made."""
    try:
        np.lib.format.open_memmap(path, "w+", np.uint8, shape)
        with path.open("r+b") as file:
            os.posix_fallocate(file.fileno(), 0, path.stat().st_size)
    except OSError:
        path.unlink(missing_ok=True)
        raise


class _Writer:
    """Writes batches at their offset, not through a memory map, whose pages could not report a full disk."""

    def __init__(self, state: Path, batch: int, rows: Path | None):
        self.batch, self.synced = batch, time.monotonic()
        self.waiting: list[int] = []  # batches written but not yet marked as done
        self.done = (state / DONE).open("r+b", buffering=0)
        self.rows, self.offset = None, 0  # and where the rows begin, after the header
        if rows is not None:
            self.offset = np.load(rows, mmap_mode="r").offset
            self.rows = rows.open("r+b", buffering=0)

    def __enter__(self) -> _Writer:
        return self

    def __exit__(self, *error: object) -> None:
        for file in (self.done, self.rows):
            if file is not None:
                file.close()

    def add(self, first: int, images: np.ndarray) -> None:
        """Write the images ``first``, ``first`` + 1, ..."""
        if self.rows is not None:
            data, place = memoryview(images.tobytes()), self.offset + first * images[0].nbytes
            while data:
                written = os.pwrite(self.rows.fileno(), data, place)
                data, place = data[written:], place + written
        self.waiting.append(first // self.batch)
        if time.monotonic() - self.synced > SYNC_SECONDS:
            self.sync()

    def sync(self) -> None:
        """Mark batches as done once their rows are on disk."""
        if self.rows is not None:
            os.fsync(self.rows.fileno())
        for index in self.waiting:
            os.pwrite(self.done.fileno(), b"\1", index)
        self.waiting, self.synced = [], time.monotonic()


def _zip(rows: Path, labels: np.ndarray, out: Path) -> None:
    """Copy the rows and the labels into an archive as ``numpy.savez`` lays it out, without loading them."""
    buffer = io.BytesIO()
    np.save(buffer, labels)
    buffer.seek(0)
    temporary = rows.with_name("archive.npz")
    with zipfile.ZipFile(temporary, "w") as archive, rows.open("rb") as images:
        members: tuple[tuple[str, IO[bytes]], ...] = (("arr_0.npy", images), ("arr_1.npy", buffer))
        for name, source in members:  # a ZipInfo has a constant date
            with archive.open(zipfile.ZipInfo(name), "w", force_zip64=True) as member:
                shutil.copyfileobj(source, member, CHUNK)
    with temporary.open("r+b") as file:
        os.fsync(file.fileno())
    temporary.chmod(0o644)
    temporary.replace(out)
    files.sync_folder(out.parent)


@contextlib.contextmanager
def _disk_errors(out: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise files.cannot_write(out, error) from error
