"""Files and folders that appear whole under their final name, or not at all."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from ditlab.errors import UserError


def cannot_write(path: Path, error: OSError) -> UserError:
    """What to say of a disk that is full, or a place that cannot be written."""
    reason = error.strerror or str(error)
    return UserError(f"cannot write {path}: {reason}; make room or choose another place, then run the same command")


def cache_home() -> Path:
    """Folder for downloads and computed files that any run may use: ditlab in XDG_CACHE_HOME, by default ~/.cache."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "ditlab"


def sync_folder(folder: Path) -> None:
    """Make renames inside ``folder`` survive a power cut."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_file(path: Path, content: bytes | str) -> None:
    """Write ``content`` to ``path`` through a synced temporary file in its folder and a rename.

    Raises:
        UserError: the disk is full or the place cannot be written; what stood at ``path`` is unchanged.
    """
    data = content.encode() if isinstance(content, str) else content
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".part", dir=path.parent)
        temporary = Path(name)
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.chmod(0o644)
        temporary.replace(path)
        sync_folder(path.parent)
    except OSError as error:
        raise cannot_write(path, error) from error
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)


def begin_folder(path: Path) -> Path:
    """An empty temporary folder next to ``path``, which ``finishing_folder`` renames to it.

    Raises:
        UserError: the place cannot be written.
    """
    temporary = path.with_name(f".{path.name}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir()
    except OSError as error:
        raise cannot_write(path, error) from error
    return temporary


@contextlib.contextmanager
def finishing_folder(temporary: Path, path: Path) -> Iterator[None]:
    """Fill ``temporary``, then rename it to ``path``; on any failure nothing appears there.

    A folder already at ``path`` is moved away only after the new one is complete.

    Raises:
        UserError: the disk is full or the place cannot be written.
    """
    try:
        yield
        for file in temporary.rglob("*"):
            if file.is_file():
                with file.open("rb") as opened:
                    os.fsync(opened.fileno())
        sync_folder(temporary)
        replaced = path.with_name(f".{path.name}.old.part")
        if path.exists():
            path.rename(replaced)
        temporary.rename(path)
        sync_folder(path.parent)
        shutil.rmtree(replaced, ignore_errors=True)
    except OSError as error:
        raise cannot_write(path, error) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def remove_folder(path: Path) -> None:
    """Delete a folder that stands under its final name: gone at once, whatever happens meanwhile.

    Raises:
        UserError: the place cannot be written.
    """
    going = path.with_name(f".{path.name}.old.part")
    try:
        shutil.rmtree(going, ignore_errors=True)
        path.rename(going)
        shutil.rmtree(going)
    except OSError as error:
        raise cannot_write(path, error) from error


@contextlib.contextmanager
def locked(folder: Path, what: str) -> Iterator[None]:
    """Keep a folder for this process as long as it lasts; the operating system frees it however the process ends.

    Args:
        folder: made where it is missing; an empty file ``.lock`` is in it as long as it is held.
        what: it holds, for the message.

    Raises:
        UserError: another process holds it, or the place cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = (folder / ".lock").open("w")
    except OSError as error:
        raise cannot_write(folder / ".lock", error) from error
    path = folder / ".lock"
    # Not filelock: it leaves its file behind, and without flock it falls back to a lock that outlives a killed process.
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.fstat(lock.fileno()).st_ino != path.stat().st_ino:  # one that its last holder has deleted since
                raise BlockingIOError
        except OSError as error:
            raise UserError(
                f"another process is at work on {what} {folder}; wait for it to end, or choose another --out"
            ) from error
        try:
            yield
        finally:
            path.unlink(missing_ok=True)
            with contextlib.suppress(OSError):  # stays where there is something in it
                folder.rmdir()


def is_locked(folder: Path) -> bool:
    """Whether a process of this machine holds a folder.

    It only looks: a lock taken to try would be in the way of a process that begins just then. Where the system does not
    list its locks, one that a killed process has left counts.
    """
    try:
        inode = (folder / ".lock").stat().st_ino
        return any(line.split()[5].endswith(f":{inode}") for line in Path("/proc/locks").read_text().splitlines())
    except FileNotFoundError:
        return (folder / ".lock").exists()
    except (OSError, IndexError):
        return False


def clear_unfinished(folder: Path) -> None:
    """Delete what a killed process was writing into ``folder``.

    Raises:
        UserError: the place cannot be written.
    """
    for path in folder.glob(".*.part"):
        try:
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        except OSError as error:
            raise cannot_write(folder, error) from error
