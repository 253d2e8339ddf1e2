"""A folder of image files."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from ditlab.data.decode import Unreadable
from ditlab.data.layout import arrange, image_name
from ditlab.data.source import EncodedSource
from ditlab.errors import UserError


class FolderSource(EncodedSource):
    """Image files under ``root``, arranged by ``layout.arrange``; symbolic links are followed, hidden names ignored.

    Raises:
        UserError: the folder cannot be listed, or see ``layout.arrange``.
    """

    def __init__(self, root: Path, split: str) -> None:
        status = root.stat()
        sizes = dict(_walk(root, "", frozenset({(status.st_dev, status.st_ino)})))
        layout = arrange(sizes, split, str(root))
        self.root = root / layout.prefix
        super().__init__(
            str(root), layout.files, [sizes[layout.prefix + file] for file in layout.files], layout.labels, layout.names
        )

    def encoded(self, index: int) -> bytes:
        """The file's bytes."""
        try:
            return (self.root / self.files[index]).read_bytes()
        except OSError as error:
            raise Unreadable(error.strerror or str(error)) from error


def _walk(folder: Path, prefix: str, above: frozenset[tuple[int, int]]) -> Iterator[tuple[str, int]]:
    """Relative name and bytes of each image; ``above`` are the folders around ``folder``, to end circles of links."""
    try:
        with os.scandir(folder) as listing:
            entries = list(listing)
    except OSError as error:
        raise UserError(f"cannot list {folder}: {error.strerror}; make it readable or take it out") from error
    for entry in entries:
        name = prefix + entry.name
        if entry.name.startswith("."):
            continue
        if entry.is_dir():
            status = entry.stat()
            place = (status.st_dev, status.st_ino)
            if place not in above:
                yield from _walk(Path(entry.path), f"{name}/", above | {place})
        elif image_name(name) and (entry.is_file() or entry.is_symlink()):
            # A link to nothing stays in the list, so that it is named among the images left out.
            yield name, entry.stat().st_size if entry.is_file() else 0
