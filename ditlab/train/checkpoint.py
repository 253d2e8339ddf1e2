"""Checkpoints: folders that are whole or absent, checked when read, the last good one found.

A checkpoint ``checkpoints/000012800/`` holds the tensors in torch.distributed.checkpoint's format, which can be read back
by another number of processes, ``state.json`` and ``checksums.json``.
"""

from __future__ import annotations

import hashlib
import json
import pickle
import warnings
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import nullcontext
from pathlib import Path
from typing import ClassVar

import torch
import torch.distributed.checkpoint as dcp
from torch import Tensor, nn
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.metadata import Metadata

from ditlab.errors import UserError
from ditlab.runtime import files
from ditlab.runtime.distributed import ALONE, Processes

STATE, CHECKSUMS = "state.json", "checksums.json"
Log = Callable[[str], None]


class _MetadataUnpickler(pickle.Unpickler):
    """Reads the format's index, which is a pickle, and nothing else: only the data classes such an index is made of."""

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
    """What torch wrapped, maybe twice: a full disk, or Ctrl-C; the error itself where it was neither."""
    cause: BaseException | None = next(iter(error.failures.values()))[0]
    while cause is not None and not isinstance(cause, (OSError, KeyboardInterrupt)):
        cause = cause.__cause__ or cause.__context__
    return cause or error


def existing(folder: Path) -> list[Path]:
    """The whole checkpoints of a run, oldest first."""
    return sorted(path for path in folder.glob("[0-9]*") if path.is_dir())


def _damage(path: Path) -> str:
    """What is wrong with the files of a checkpoint, or nothing."""
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
    """The checkpoints of a run, written while training goes on.

    Args:
        folder: ``checkpoints`` of the run.
        keep: how many to keep.
        processes: of the run.
        log: is told of damaged ones.
        sharded: each process writes the shards that lie with it; otherwise the first writes what all have.
    """

    def __init__(self, folder: Path, keep: int, processes: Processes, log: Log, sharded: bool = False):
        self.folder, self.keep, self.processes, self.log = folder, keep, processes, log
        self.sharded = sharded
        self._writer = ThreadPoolExecutor(1, "checkpoint")
        self._writing: Future[None] | None = None

    def load(self, tensors: dict[str, Tensor]) -> dict[str, object] | None:
        """Read the newest good checkpoint into ``tensors``, in place; damaged ones are named and passed over.

        Returns:
            The state written with it, or nothing where there is no checkpoint.

        Raises:
            UserError: the checkpoint belongs to another architecture, every one is damaged, or there can be none.
        """
        path = self.processes.broadcast_from_main(self._newest_good)
        if path is None:
            return None
        _read(path, tensors, self.processes if self.sharded else ALONE)
        return json.loads((path / STATE).read_text())

    def _newest_good(self) -> Path | None:
        try:  # where a file has its name, or a link leads nowhere, a run that began anew would be lost later
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise files.cannot_write(self.folder, error) from error
        found = existing(self.folder)
        damage = ""
        for path in reversed(found):
            if damage:
                self.log(f"{damage}; using the one before")
            damage = _damage(path)
            if not damage:
                return path
            damage = f"checkpoint {path} is damaged ({damage})"
        if found:
            many = len(found) > 1
            what = f"every checkpoint in {self.folder} is damaged; the last tried: {damage}" if many else damage
            raise UserError(f"{what}; delete {self.folder} to train from the beginning")
        return None

    def save(self, images: int, tensors: dict[str, Tensor], state: dict[str, object]) -> None:
        """Copy everything to memory, and write it to disk from there while training goes on; then delete old ones.

        Args:
            images: images trained on, the checkpoint's name.
            tensors: weights, average and optimiser.
            state: numbers that go with them, as JSON.

        Raises:
            UserError: the disk is full or the folder cannot be written; earlier checkpoints stand.
        """
        self.wait()
        path = self.folder / f"{images:012d}"
        unfinished = self.processes.broadcast_from_main(lambda: files.begin_folder(path))
        if not (self.sharded or self.processes.is_main):
            return
        copies = {name: tensor.detach().to("cpu", copy=True) for name, tensor in tensors.items()}
        self._writing = self._writer.submit(self._write, copies, unfinished, path, state)

    def _write(self, copies: dict[str, Tensor], unfinished: Path, path: Path, state: dict[str, object]) -> None:
        try:
            with files.finishing_folder(unfinished, path) if self.processes.is_main else nullcontext():
                _quiet()
                try:
                    dcp.save(  # ends in the first process when all processes have written
                        copies,
                        storage_writer=dcp.FileSystemWriter(unfinished, sync_files=self.sharded),
                        process_group=self.processes.checkpoint_group,
                        no_dist=not self.sharded,
                    )
                except CheckpointException as error:
                    raise _cause(error) from error
                if self.processes.is_main:
                    (unfinished / STATE).write_text(json.dumps(state, indent=2) + "\n")
                    sums = {file.name: _checksum(file) for file in sorted(unfinished.iterdir())}
                    (unfinished / CHECKSUMS).write_text(json.dumps(sums, indent=2) + "\n")
        except OSError as error:
            raise files.cannot_write(path, error) from error
        if self.processes.is_main:
            # Newer ones can only be damaged ones that were passed over: they do not count.
            for old in [other for other in existing(self.folder) if other.name <= path.name][: -self.keep]:
                files.remove_folder(old)

    def poll(self) -> None:
        """Raise what went wrong with the last ``save``, if it is known by now."""
        if self._writing is not None and self._writing.done():
            self.wait()

    def wait(self) -> None:
        """Until the last ``save`` is on disk; raises what went wrong with it."""
        writing, self._writing = self._writing, None
        if writing is not None:
            writing.result()

    def close(self) -> None:
        """Let a checkpoint that is being written become whole."""
        self._writer.shutdown(wait=True)


def load_average(path: Path, module: nn.Module) -> None:
    """Read the averaged weights of a checkpoint of any age into a network, in place.

    Raises:
        UserError: the checkpoint is damaged, or of another architecture.
    """
    damage = _damage(path)
    if damage:
        raise UserError(f"checkpoint {path} is damaged ({damage}); take another")
    _read(path, {f"average.{name}": tensor for name, tensor in module.state_dict().items()}, ALONE, "average.")


def _quiet() -> None:
    """No warnings of what torch's own checkpoint code does; for good, since it goes on in threads."""
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
        shape = tuple(getattr(stored[name], "size", ()))
        if shape != tuple(tensors[name].shape):
            wanted = tuple(tensors[name].shape)
            raise UserError(f"checkpoint {path} is of another architecture: {name} is {shape}, not {wanted}")
    _quiet()
    try:
        dcp.load(tensors, storage_reader=reader, process_group=processes.cpu_group, no_dist=processes.size == 1)
    except CheckpointException as error:
        reason = str(next(iter(error.failures.values()))[0]).splitlines()[0]
        raise UserError(f"checkpoint {path} is refused: {reason}; delete it") from error
