"""A .tar (plain or compressed) or .zip of image files, read in place: nothing is unpacked to disk."""

from __future__ import annotations

import bz2
import gzip
import lzma
import os
import posixpath
import tarfile
import threading
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from io import BytesIO
from pathlib import Path
from typing import IO, Any

from ditlab.data.decode import DecodeError
from ditlab.data.layout import Layout, arrange
from ditlab.data.listing import clean_name, ending
from ditlab.data.source import MEMORY_LIMIT, EncodedSource, Once, call, printable, stamps_of
from ditlab.errors import UserError

ARCHIVE_SUFFIXES = (
    ".tar", ".tar.gz", ".tgz", ".tar.zst", ".tzst", ".tar.xz", ".txz", ".tar.bz2", ".tbz2", ".tbz", ".zip",
)  # fmt: skip
_GZIP, _BZIP2, _XZ, _ZSTD = b"\x1f\x8b", b"BZh", b"\xfd7zXZ\0", b"\x28\xb5\x2f\xfd"
_COMPRESSED = (_GZIP, _BZIP2, _XZ, _ZSTD)
_CHUNK = 4 * 2**20
_UTF8 = 0x800  # flag of a zip member whose name is UTF-8


def open_archive(path: Path, split: str, label: str = "", once: Once = call, caption: str = "") -> EncodedSource:
    """The images of an archive, classes, captions and splits as in a folder; its first bytes, not its name, tell the format.

    Raises a UserError if it is damaged, not an archive or too large for memory, or see ``layout.arrange``.
    """
    with checked(path):
        with path.open("rb") as file:
            magic = file.read(6)
        if magic.startswith(b"PK"):
            return ZipSource(path, split, label, caption)
        content = _decompressed(path, magic) if magic.startswith(_COMPRESSED) else None
        return TarSource(path, split, label, content, once, caption)


@contextmanager
def checked(path: Path) -> Iterator[None]:
    """Turn the errors of a damaged archive into a UserError."""
    try:
        yield
    except (tarfile.TarError, zipfile.BadZipFile, lzma.LZMAError, zlib.error, EOFError, OSError) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UserError(
            f"{path} cannot be read ({reason}); give a complete .tar, .tar.gz, .tar.zst or .zip file"
        ) from error


class TarSource(EncodedSource):
    """A tar archive whose members are listed once and read by position, from any number of threads.

    ``content`` is the decompressed archive; None reads members from the file.
    """

    def __init__(
        self, path: Path, split: str, label: str, content: BytesIO | None, once: Once = call, caption: str = ""
    ) -> None:
        layout, self._members = once(lambda: _list(path, split, label, content, caption))
        self._content = content
        self._file = path.open("rb") if content is None else content
        sizes = [size for _, size in self._members]
        super().__init__(
            str(path), layout.files, sizes, layout.labels, layout.names, stamps_of(path), layout.notes, layout.captions
        )

    def encoded(self, index: int) -> bytes:
        """The member's bytes."""
        start, size = self._members[index]
        if self._content is not None:
            return bytes(self._content.getbuffer()[start : start + size])
        # pread does not move the file's position, so threads and forked processes can share the file.
        return os.pread(self._file.fileno(), size, start)

    def __del__(self) -> None:
        if hasattr(self, "_file"):
            self._file.close()


class ZipSource(EncodedSource):
    """A zip archive whose members are read one at a time under a lock and decoded outside it."""

    def __init__(self, path: Path, split: str, label: str = "", caption: str = "") -> None:
        self._zip = zipfile.ZipFile(path)
        self._lock = threading.Lock()
        listed = [info for info in self._zip.infolist() if not info.is_dir()]
        found = {clean_name(_zip_name(info).replace("\\", "/")): info for info in listed}
        members = {name: info for name, info in found.items() if name is not None}
        locked = [printable(name) for name, info in members.items() if info.flag_bits & 1]
        if locked:
            raise UserError(f"{path} is encrypted (first: {locked[0]}); give an archive without a password")
        layout = arrange(members, split, str(path), label, lambda name: self._zip.read(members[name]), caption=caption)
        self._members = [members[layout.prefix + file] for file in layout.files]
        sizes = [info.file_size for info in self._members]
        old = sum(not (info.filename.isascii() or info.flag_bits & _UTF8 or _is_utf8(info)) for info in listed)
        notes = (f"{old:,} names of unknown code page, read as that of DOS (437)",) * (old > 0)
        super().__init__(
            str(path), layout.files, sizes, layout.labels, layout.names, stamps_of(path), (*layout.notes, *notes),
            layout.captions,
        )  # fmt: skip

    def encoded(self, index: int) -> bytes:
        """The member's bytes, verified by its checksum."""
        try:
            with self._lock:
                return self._zip.read(self._members[index])
        except (zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError, NotImplementedError, OSError) as error:
            raise DecodeError(" ".join(str(error).split()) or type(error).__name__) from error

    def __del__(self) -> None:
        if hasattr(self, "_zip"):
            self._zip.close()


def _is_utf8(info: zipfile.ZipInfo) -> bool:
    """Whether the name of a member, decoded from the code page of DOS for want of a mark, is UTF-8."""
    with suppress(UnicodeError):
        return bool(info.filename.encode("cp437").decode())
    return False


def _zip_name(info: zipfile.ZipInfo) -> str:
    marked = info.filename.isascii() or info.flag_bits & _UTF8
    return info.filename.encode("cp437").decode() if not marked and _is_utf8(info) else info.filename


def _list(
    path: Path, split: str, label: str, content: BytesIO | None, caption: str
) -> tuple[Layout, list[tuple[int, int]]]:
    """The images of a split, and start and bytes of each member."""
    with checked(path), nullcontext(content) if content else path.open("rb") as file:
        members = tar_members(file)

        def read(name: str) -> bytes:
            start, size = members[name]
            file.seek(start)
            return file.read(size)

        layout = arrange(members, split, str(path), label, read, caption=caption)
    return layout, [members[layout.prefix + file] for file in layout.files]


def tar_members(file: IO[bytes]) -> dict[str, tuple[int, int]]:
    """Start and bytes of each member by cleaned name; links are followed, the last member of a name counts.

    Members of a plain tar inside are below a folder of its name: ImageNet is a tar of a tar for each class.
    """
    members: dict[str, tuple[int, int]] = {}
    links: dict[str, str] = {}
    with tarfile.open(fileobj=file, mode="r:") as tar:
        for member in tar:
            name = clean_name(member.name)
            if name is None:
                continue
            if member.isreg() and ending(name) == ".tar":
                file.seek(member.offset_data)
                members |= {f"{name[:-4]}/{inner}": found for inner, found in tar_members(file).items()}
            elif member.isreg() and not member.issparse():
                members[name] = (member.offset_data, member.size)
            elif member.islnk():
                links[name] = posixpath.normpath(member.linkname).lstrip("/")
            elif member.issym():
                links[name] = posixpath.normpath(posixpath.join(posixpath.dirname(name), member.linkname))
        end = tar.offset
    # tarfile stops silently at a damaged header; only a block of zeros is the true end.
    file.seek(end)
    if file.read(512) != bytes(512):
        raise tarfile.ReadError(f"damaged or truncated at byte {end:,}")
    return members | {name: members[target] for name, target in links.items() if target in members}


def _decompressed(path: Path, magic: bytes) -> BytesIO:
    """The whole archive in memory: compressed tars have no random access."""
    content = BytesIO()
    with path.open("rb") as raw, _decompressor(path, raw, magic) as stream:
        try:
            while chunk := stream.read(_CHUNK):
                content.write(chunk)
                if content.tell() > MEMORY_LIMIT:
                    size = f"{MEMORY_LIMIT / 2**30:g} GiB"
                    raise UserError(f"{path} is larger than {size} when decompressed; unpack it and give the folder")
        except (UserError, OSError, EOFError, lzma.LZMAError, zlib.error):
            raise
        except Exception as error:
            # Naming zstandard's error type would need its import for every other format.
            raise tarfile.ReadError(str(error)) from error
    content.seek(0)
    return content


def _decompressor(path: Path, raw: IO[bytes], magic: bytes) -> Any:
    """A readable stream, usable as a context, of the decompressed bytes."""
    for start, opened in ((_GZIP, gzip.open), (_BZIP2, bz2.open), (_XZ, lzma.open)):
        if magic.startswith(start):
            return opened(raw)
    try:
        import zstandard
    except ImportError as error:
        raise UserError(f"{path} needs the package zstandard; pip install 'ditlab[data]'") from error
    return zstandard.ZstdDecompressor().stream_reader(raw, read_across_frames=True, closefd=False)
