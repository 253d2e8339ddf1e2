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
    """The error for a full disk or a path that cannot be written."""
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
    """Write ``content`` through a synced temporary file and a rename; after a UserError, ``path`` is unchanged."""
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
    """An empty temporary folder next to ``path``, which ``finishing_folder`` renames to it."""
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
    """Delete a folder that has its final name; a rename first makes it disappear at once."""
    going = path.with_name(f".{path.name}.old.part")
    try:
        shutil.rmtree(going, ignore_errors=True)
        path.rename(going)
        shutil.rmtree(going)
    except OSError as error:
        raise cannot_write(path, error) from error


@contextlib.contextmanager
def locked(folder: Path, what: str) -> Iterator[None]:
    """Lock a folder, made if missing, by an empty file ``.lock``; the system frees it however the process ends.

    Raises a UserError if another process holds it; ``what`` is the folder's content, for the message.
    """
    path = folder / ".lock"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = path.open("w")
    except OSError as error:
        raise cannot_write(path, error) from error
    # Not filelock: it leaves its file behind, and without flock it falls back to a lock that outlives a killed process.
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.fstat(lock.fileno()).st_ino != path.stat().st_ino:  # one that its last holder has deleted since
                raise BlockingIOError
        except OSError as error:
            advice = "wait for it to end, or choose another --out"
            raise UserError(f"another process is at work on {what} {folder}; {advice}") from error
        try:
            yield
        finally:
            path.unlink(missing_ok=True)
            with contextlib.suppress(OSError):  # stays where there is something in it
                folder.rmdir()


def is_locked(folder: Path) -> bool:
    """Whether a process of this machine holds a folder, without taking the lock, which would block a starting process.

    If the system does not list its locks, one left by a killed process counts.
    """
    try:
        inode = (folder / ".lock").stat().st_ino
        return any(line.split()[5].endswith(f":{inode}") for line in Path("/proc/locks").read_text().splitlines())
    except FileNotFoundError:
        return (folder / ".lock").exists()
    except (OSError, IndexError):
        return False


def clear_unfinished(folder: Path) -> None:
    """Delete what a killed process was writing into ``folder``."""
    for path in folder.glob(".*.part"):
        try:
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        except OSError as error:
            raise cannot_write(folder, error) from error


def is_url(path: str) -> bool:
    """Whether a string is a URL with a protocol, and not a path."""
    return "://" in path
