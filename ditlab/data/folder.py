"""A folder of image files, or of tar archives of them."""

from __future__ import annotations

import os
import re
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from ditlab.data.archive import checked, tar_members
from ditlab.data.decode import DecodeError
from ditlab.data.layout import Layout, arrange
from ditlab.data.listing import SYSTEM, clean_name, ending, extensions
from ditlab.data.source import EncodedSource, Once, Stamps, call, printable, stamp
from ditlab.errors import UserError

_LISTED = 12  # folders named in a note

Member = tuple[str, int, int]  # path of the file below the root, the start (-1: the whole file) and the number of bytes


class FolderSource(EncodedSource):
    """Image files under ``root``, arranged by ``layout.arrange``; symbolic links are followed, hidden names ignored.

    If there are tar archives and no images, their members are read in place: an archive is a class, or, if its name is
    numbered or it contains .cls files, a shard of a larger set (WebDataset).
    """

    def __init__(self, root: Path, split: str, label: str = "", once: Once = call, caption: str = "") -> None:
        layout, self._members, stamps = once(lambda: _list(root, split, label, caption))
        self.root = root
        self._descriptors: dict[str, int] = {}
        self._lock = threading.Lock()
        sizes = [size for _, _, size in self._members]
        super().__init__(
            str(root), layout.files, sizes, layout.labels, layout.names, stamps, layout.notes, layout.captions
        )

    def encoded(self, index: int) -> bytes:
        """The file's or the member's bytes."""
        path, start, size = self._members[index]
        try:
            if start < 0:
                return (self.root / path).read_bytes()
            return os.pread(self._descriptor(path), size, start)
        except OSError as error:
            raise DecodeError(error.strerror or str(error)) from error

    def _descriptor(self, path: str) -> int:
        with self._lock:
            if path not in self._descriptors:
                self._descriptors[path] = os.open(self.root / path, os.O_RDONLY)
            return self._descriptors[path]

    def __del__(self) -> None:
        for descriptor in getattr(self, "_descriptors", {}).values():
            os.close(descriptor)


def _list(root: Path, split: str, label: str, caption: str) -> tuple[Layout, list[Member], Stamps]:
    """The images of a split, where the bytes of each are, and the stamps of the folders and of files that tell classes."""
    stamps: Stamps = {}
    try:
        sizes = dict(_walk(root, "", frozenset(), root.stat(), stamps))
    except OSError as error:
        raise UserError(f"cannot list {error.filename}: {error.strerror}; make it readable or remove it") from error
    members: dict[str, Member] = {name: (name, -1, size) for name, size in sizes.items()}
    tars = [name for name in sizes if ending(name) == ".tar"]
    shards: set[str] = set()
    used: Stamps = {}
    if tars and not any(ending(name) in extensions() for name in sizes):
        members, shards = _archives(root, tars, members)

    def read(name: str) -> bytes:
        path, start, size = members[name]
        try:
            used[os.path.abspath(root / path)] = stamp(root / path)  # noqa: PTH100 - as in _walk
            with (root / path).open("rb") as file:
                file.seek(max(start, 0))
                return file.read(size)
        except OSError as error:
            raise UserError(f"cannot read {path}: {error.strerror}; make it readable or remove it") from error

    layout = arrange(members, split, str(root), label, read, shards, caption)
    empty = _without_images(os.path.abspath(root / layout.prefix), stamps, layout)  # noqa: PTH100 - as in _walk
    if empty:
        listed = printable(", ".join(empty[:_LISTED])) + ", ..." * (len(empty) > _LISTED)
        layout = replace(layout, notes=(*layout.notes, f"folders without images, which are no classes: {listed}"))
    return layout, [members[layout.prefix + file] for file in layout.files], stamps | used


def _without_images(folder: str, stamps: Stamps, layout: Layout) -> list[str]:
    """Names of the folders in ``folder`` without images, where other folders have some."""
    used = {file.split("/", 1)[0] for file in layout.files if "/" in file}
    inside = {os.path.basename(path) for path in stamps if os.path.dirname(path) == folder}  # noqa: PTH119, PTH120
    return sorted(name for name in inside - used if name.lower() not in SYSTEM) if used else []


def _archives(root: Path, tars: list[str], others: dict[str, Member]) -> tuple[dict[str, Member], set[str]]:
    """The members of tar archives, each below a folder of the archive's name, and the names of those that are shards."""
    members = {name: member for name, member in others.items() if name not in tars}
    stems = [tar[:-4].replace("/", "_") for tar in tars]
    shards = _numbered(stems)
    for tar, stem in zip(tars, stems, strict=True):
        with checked(root / tar), (root / tar).open("rb") as file:
            inside = tar_members(file)
        members |= {f"{stem}/{name}": (tar, start, size) for name, (start, size) in inside.items()}
        if any(ending(name) == ".cls" for name in inside):
            shards.add(stem)
    return members, shards


def _numbered(stems: list[str]) -> set[str]:
    """Names that end with consecutive numbers: train-000000, train-000001, and not n01440764, n01443537."""
    numbers: dict[str, list[int]] = {}
    found = {stem: match for stem in stems if (match := re.fullmatch(r"(.*?)(\d{3,})(-of-\d+)?", stem))}
    for match in found.values():
        numbers.setdefault(match[1], []).append(int(match[2]))
    consecutive = {prefix for prefix, each in numbers.items() if max(each) - min(each) == len(each) - 1}
    return {stem for stem, match in found.items() if match[1] in consecutive}


def _walk(
    folder: Path, prefix: str, above: frozenset[tuple[int, int]], status: os.stat_result, stamps: Stamps
) -> Iterator[tuple[str, int]]:
    """Relative name and bytes of each file; ``above`` are the folders around ``folder``, to end circles of links."""
    inode = (status.st_dev, status.st_ino)
    if inode in above:
        return
    stamps[os.path.abspath(folder)] = stamp(folder, status)  # noqa: PTH100 - keeps links as they are
    with os.scandir(folder) as listing:
        entries = list(listing)
    for entry in entries:
        name = prefix + entry.name
        if clean_name(entry.name) is None:
            continue
        if entry.is_dir():
            yield from _walk(Path(entry.path), f"{name}/", above | {inode}, entry.stat(), stamps)
        elif entry.is_file() or entry.is_symlink():
            # A link to nothing stays in the list, so that it is named among the skipped images.
            yield name, entry.stat().st_size if entry.is_file() else 0
