"""A folder of image files."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from ditlab.data.decode import DecodeError
from ditlab.data.layout import Layout, arrange, image_name
from ditlab.data.source import EncodedSource, Once, Stamps, call, stamp
from ditlab.errors import UserError


class FolderSource(EncodedSource):
    """Image files under ``root``, arranged by ``layout.arrange``; symbolic links are followed, hidden names ignored."""

    def __init__(self, root: Path, split: str, once: Once = call) -> None:
        layout, sizes, stamps = once(lambda: _list(root, split))
        self.root = root / layout.prefix
        super().__init__(str(root), layout.files, sizes, layout.labels, layout.names, stamps)

    def encoded(self, index: int) -> bytes:
        """The file's bytes."""
        try:
            return (self.root / self.files[index]).read_bytes()
        except OSError as error:
            raise DecodeError(error.strerror or str(error)) from error


def _list(root: Path, split: str) -> tuple[Layout, list[int], Stamps]:
    """The images of a split, the bytes of each, and the stamps of all folders."""
    stamps: Stamps = {}
    try:
        sizes = dict(_walk(root, "", frozenset(), root.stat(), stamps))
    except OSError as error:
        raise UserError(f"cannot list {error.filename}: {error.strerror}; make it readable or remove it") from error
    layout = arrange(sizes, split, str(root))
    return layout, [sizes[layout.prefix + file] for file in layout.files], stamps


def _walk(
    folder: Path, prefix: str, above: frozenset[tuple[int, int]], status: os.stat_result, stamps: Stamps
) -> Iterator[tuple[str, int]]:
    """Relative name and bytes of each image; ``above`` are the folders around ``folder``, to end circles of links."""
    inode = (status.st_dev, status.st_ino)
    if inode in above:
        return
    stamps[os.path.abspath(folder)] = stamp(folder, status)  # noqa: PTH100 - keeps links as they are
    with os.scandir(folder) as listing:
        entries = list(listing)
    for entry in entries:
        name = prefix + entry.name
        if entry.name.startswith("."):
            continue
        if entry.is_dir():
            yield from _walk(Path(entry.path), f"{name}/", above | {inode}, entry.stat(), stamps)
        elif image_name(name) and (entry.is_file() or entry.is_symlink()):
            # A link to nothing stays in the list, so that it is named among the skipped images.
            yield name, entry.stat().st_size if entry.is_file() else 0
