"""Checkpoints: folders that are complete or absent, verified when read; the newest intact one is used.

A checkpoint ``checkpoints/000012800/`` holds the tensors in torch.distributed.checkpoint's format, which can be read
by another number of processes, ``state.json`` and ``checksums.json``.
"""

from __future__ import annotations

import hashlib
import json
import pickle
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from contextlib import nullcontext
from pathlib import Path
from typing import Any, ClassVar

import torch
import torch.distributed.checkpoint as dcp
from torch import Tensor, nn
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.metadata import Metadata
from torch.distributed.tensor import DTensor

from ditlab.errors import UserError
from ditlab.runtime import files
from ditlab.runtime.device import thread_pool
from ditlab.runtime.distributed import ALONE, Processes

CPU = torch.device("cpu")
STATE, CHECKSUMS = "state.json", "checksums.json"
Log = Callable[[str], None]


class _MetadataUnpickler(pickle.Unpickler):
    """Reads the format's index, which is a pickle: only the data classes of such an index are allowed."""

    allowed: ClassVar[dict[str, set[str]]] = {
        "torch": {"Size", *(name for name, value in vars(torch).items() if isinstance(value, torch.dtype))},
        "torch.serialization": {"_get_layout"},
        "torch.distributed.checkpoint.metadata": {
            "Metadata", "TensorStorageMetadata", "TensorProperties", "_MEM_FORMAT_ENCODING", "ChunkStorageMetadata",
            "MetadataIndex", "StorageMeta",
        },
        "torch.distributed.checkpoint.filesystem": {"_StorageInfo", "_StoragePrefix"},
        "pathlib": {"Path", "PosixPath", "WindowsPath"},
    }  # fmt: skip

    def find_class(self, module: str, name: str) -> object:
        if name in self.allowed.get(module, ()):
            return super().find_class(module, name)
        raise pickle.UnpicklingError(f"its index names {module}.{name}, which is code, not data")


class _SafeReader(dcp.FileSystemReader):
    def read_metadata(self, *args: object, **kwargs: object) -> Metadata:
        with (Path(self.path) / ".metadata").open("rb") as file:
            metadata = _MetadataUnpickler(file).load()
        if metadata.storage_meta is not None:
            metadata.storage_meta.load_id = self.load_id
        return metadata


def _checksum(file: Path) -> str:
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def _cause(error: CheckpointException) -> BaseException:
    """The OSError or KeyboardInterrupt that torch wrapped, maybe twice; otherwise the error itself."""
    cause: BaseException | None = next(iter(error.failures.values()))[0]
    while cause is not None and not isinstance(cause, (OSError, KeyboardInterrupt)):
        cause = cause.__cause__ or cause.__context__
    return cause or error


def existing(folder: Path) -> list[Path]:
    """The complete checkpoints of a run, oldest first."""
    return sorted(path for path in folder.glob("[0-9]*") if path.is_dir())


def _damage(path: Path) -> str:
    """What is wrong with the files of a checkpoint; empty if they are intact."""
    try:
        sums = json.loads((path / CHECKSUMS).read_text())
        for name, expected in sums.items():
            if not (path / name).exists():
                return f"{name} is missing"
            if _checksum(path / name) != expected:
                return f"{name} has changed since it was written"
    except (OSError, ValueError, AttributeError) as error:
        return str(error)
    return "" if STATE in sums and ".metadata" in sums else "files are missing"


class Checkpoints:
    """The newest ``keep`` checkpoints of a run, written while training continues: by all processes if ``sharded``."""

    def __init__(
        self, folder: Path, keep: int, processes: Processes, log: Log, sharded: bool = False,
        device: torch.device = CPU,
    ):  # fmt: skip
        self.folder, self.keep, self.processes, self.log, self.sharded = folder, keep, processes, log, sharded
        self._found: Path | None = None
        self._snapshot = Snapshot(device)
        self._writer = thread_pool(device, "checkpoint")
        self._writing: Future[None] | None = None

    def find(self) -> dict[str, Any] | None:
        """The state of the newest intact checkpoint, if any; damaged ones are logged. UserError if all are damaged."""
        self._found = self.processes.broadcast_from_main(self._newest_intact)
        return None if self._found is None else json.loads((self._found / STATE).read_text())

    def read(self, tensors: dict[str, Tensor]) -> None:
        """Read the checkpoint that ``find`` found into ``tensors``, in place; UserError if its architecture differs."""
        assert self._found is not None
        _read(self._found, tensors, self.processes if self.sharded else ALONE)

    def _newest_intact(self) -> Path | None:
        try:  # a run whose checkpoints cannot be written later would lose its work
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise files.cannot_write(self.folder, error) from error
        found, damaged = existing(self.folder), ""
        for path in reversed(found):
            if damaged:
                self.log(f"{damaged}; using the one before")
            if not (damage := _damage(path)):
                return path
            damaged = f"checkpoint {path} is damaged ({damage})"
        if not found:
            return None
        many = f"every checkpoint in {self.folder} is damaged; the last tried: " if len(found) > 1 else ""
        raise UserError(f"{many}{damaged}; delete {self.folder} to train from the beginning")

    def save(
        self, images: int, tensors: dict[str, Tensor], state: dict[str, object],
        before: Sequence[Callable[[], None] | None] = (),
    ) -> None:  # fmt: skip
        """Copy tensors to the host, and write them and ``state`` from there while training continues; then delete old ones.

        ``before`` is called first, in the thread that writes: a run that has its last checkpoint has its model file.
        UserError, with earlier checkpoints intact, if the disk is full or the folder cannot be written.
        """
        self.wait()
        path = self.folder / f"{images:012d}"
        unfinished = self.processes.broadcast_from_main(lambda: files.begin_folder(path))
        if not (self.sharded or self.processes.is_main):
            return
        copies, ready = self._snapshot(tensors)

        def write() -> None:
            for job in filter(None, before):
                job()
            ready()
            self._write(copies, unfinished, path, state)

        self._writing = self._writer.submit(write)

    def _write(self, copies: dict[str, Tensor], unfinished: Path, path: Path, state: dict[str, object]) -> None:
        try:
            with files.finishing_folder(unfinished, path) if self.processes.is_main else nullcontext():
                _ignore_warnings()
                # Copy-ahead is for tensors on a GPU: it would synchronise a stream for each of these, which are on the host.
                writer = dcp.FileSystemWriter(unfinished, sync_files=self.sharded, per_thread_copy_ahead=0)
                try:
                    group = self.processes.checkpoint_group  # the main process returns when all processes have written
                    dcp.save(copies, storage_writer=writer, process_group=group, no_dist=not self.sharded)
                except CheckpointException as error:
                    raise _cause(error) from error
                if self.processes.is_main:
                    (unfinished / STATE).write_text(json.dumps(state, indent=2) + "\n")
                    sums = {file.name: _checksum(file) for file in sorted(unfinished.iterdir())}
                    (unfinished / CHECKSUMS).write_text(json.dumps(sums, indent=2) + "\n")
        except OSError as error:
            raise files.cannot_write(path, error) from error
        if self.processes.is_main:
            # Newer checkpoints can only be damaged ones that were skipped: they do not count.
            for old in [other for other in existing(self.folder) if other.name <= path.name][: -self.keep]:
                files.remove_folder(old)

    def poll(self) -> None:
        """Raise the error of the last ``save``, if it has failed by now."""
        if self._writing is not None and self._writing.done():
            self.wait()

    def wait(self) -> None:
        """Wait until the last ``save`` is on disk; raises its error."""
        writing, self._writing = self._writing, None
        if writing is not None:
            writing.result()

    def close(self) -> None:
        """Wait until a checkpoint that is being written is complete."""
        self._writer.shutdown(wait=True)


class Snapshot:
    """Copies tensors to the host with one synchronisation, in the thread that writes, not one for each tensor.

    From a GPU they are copied into pinned memory, which is kept for the next checkpoint, on a stream of their own; the next
    step waits for the copy on the GPU (10.8 GB of XL/2, computed at 50 GB/s: 0.2 s), the host does not wait.
    """

    def __init__(self, device: torch.device):
        self.stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        self.pinned: dict[str, Tensor] = {}

    def __call__(self, tensors: dict[str, Tensor]) -> tuple[dict[str, Tensor], Callable[[], None]]:
        """The copies, and a function that waits until they are complete."""
        if self.stream is None:
            return {name: tensor.detach().to("cpu", copy=True) for name, tensor in tensors.items()}, lambda: None
        copies, current = {}, torch.cuda.current_stream(self.stream.device)
        self.stream.wait_stream(current)
        with torch.cuda.stream(self.stream):
            for name, tensor in tensors.items():
                source = tensor.detach()
                if isinstance(source, DTensor):  # a shard has no pinned form
                    copies[name] = source.to("cpu", copy=True)
                else:
                    if name not in self.pinned:
                        self.pinned[name] = torch.empty_like(source, device="cpu", pin_memory=True)
                    copies[name] = self.pinned[name].copy_(source, non_blocking=True)
        current.wait_stream(self.stream)
        return copies, self.stream.record_event().synchronize


def load_average(path: Path, module: nn.Module) -> None:
    """Read a checkpoint's averaged weights into a network, in place; UserError if damaged or of another architecture."""
    if damage := _damage(path):
        raise UserError(f"checkpoint {path} is damaged ({damage}); use another one")
    _read(path, {f"average.{name}": tensor for name, tensor in module.state_dict().items()}, ALONE, "average.")


def _ignore_warnings() -> None:
    """Ignore warnings of torch's own checkpoint code, permanently, since it runs in threads."""
    for message in ("torch.distributed is disabled", "TypedStorage is deprecated"):
        warnings.filterwarnings("ignore", message)


def _read(path: Path, tensors: dict[str, Tensor], processes: Processes, prefix: str = "") -> None:
    reader = _SafeReader(path)
    try:
        stored = reader.read_metadata().state_dict_metadata
    except (pickle.UnpicklingError, AttributeError, EOFError, ImportError, LookupError, TypeError, ValueError) as error:
        raise UserError(f"checkpoint {path} is refused: {error}; delete it") from error
    for name in [*tensors, *(name for name in stored if name.startswith(prefix))]:
        if name not in stored or name not in tensors:
            where = "lacks" if name not in stored else "has an unknown"
            raise UserError(f"checkpoint {path} is of another architecture: it {where} {name}; choose another --out")
        shape, wanted = tuple(getattr(stored[name], "size", ())), tuple(tensors[name].shape)
        if shape != wanted:
            raise UserError(f"checkpoint {path} is of another architecture: {name} is {shape}, not {wanted}")
    _ignore_warnings()
    try:
        dcp.load(tensors, storage_reader=reader, process_group=processes.cpu_group, no_dist=processes.size == 1)
    except CheckpointException as error:
        reason = str(next(iter(error.failures.values()))[0]).splitlines()[0]
        raise UserError(f"checkpoint {path} is refused: {reason}; delete it") from error
