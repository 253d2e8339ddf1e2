"""Which files of a folder or archive are images, by their endings, and what is passed over."""

from __future__ import annotations

import posixpath
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cache
from io import BytesIO

from ditlab.data.metadata import CAPTION_TABLES, stems
from ditlab.data.source import printable

SYSTEM = {  # folders that file systems and programs make, in lower case
    "@eadir": "thumbnails of a Synology NAS", "__macosx": "copies of macOS attributes", "#recycle": "deleted files",
    "$recycle.bin": "deleted files", "system volume information": "files of Windows", "lost+found": "files of the disk",
}  # fmt: skip
USED = (".json", ".jsonl", ".csv", ".cls")  # read for classes and captions
TEXTS = (".txt", ".caption", ".tsv")  # read for captions where an image has the same name
DOCUMENTS = {  # endings that are not tried as images
    *USED, *TEXTS, ".md", ".xml", ".yaml", ".yml", ".html", ".py", ".ipynb", ".npy", ".npz", ".pt", ".pth", ".mat", ".log",
    ".ini", ".db", ".tar", ".zip", ".gz", ".zst", ".parquet", ".arrow", ".mp4", ".mov", ".avi", ".webm", ".mp3", ".wav",
    ".pdf", ".svg", ".eps", ".safetensors",
}  # fmt: skip


@cache
def extensions() -> frozenset[str]:
    """Endings of the images that Pillow reads, but for documents, in lower case with the dot."""
    from PIL import Image

    Image.init()
    readable = {ending for ending, kind in Image.registered_extensions().items() if kind in Image.OPEN}
    return frozenset(readable - DOCUMENTS - {".ps", ".mpg", ".mpeg", ".wmf", ".emf", ".h5", ".hdf", ".grib", ".bufr"})


def clean_name(name: str) -> str | None:
    """The normalised relative name; None for hidden files and for names that lead outside."""
    clean = posixpath.normpath(name).lstrip("/")
    return None if any(part.startswith(".") for part in clean.split("/")) else clean


def ending(name: str) -> str:
    """A file's ending in lower case, with the dot."""
    return posixpath.splitext(name)[1].lower()


@dataclass(frozen=True)
class Files:
    """Names of the images and of the files that may tell classes and captions, sorted; a note on what was passed over."""

    images: tuple[str, ...]
    tables: tuple[str, ...]
    notes: tuple[str, ...]


def select(names: Iterable[str], read: Callable[[str], bytes]) -> Files:
    """Divide clean names into images and other files; ``read`` gives the bytes of one, to try endings that are not known."""
    known, passed = extensions(), Counter[str]()
    images, tables, texts, unknown = [], [], [], dict[str, list[str]]()
    for name in sorted(names):
        system = next((part for part in name.split("/")[:-1] if part.lower() in SYSTEM), None)
        if system is not None:
            passed[f"files in {system} ({SYSTEM[system.lower()]})"] += 1
        elif (end := ending(name)) in known:
            images.append(name)
        elif end in USED:
            tables.append(name)
        elif end in TEXTS:
            texts.append(name)
        elif end in DOCUMENTS:
            passed[end] += 1
        else:
            unknown.setdefault(end, []).append(name)
    for end, group in unknown.items():
        if _is_image(read(group[0])):
            images += group
        else:
            passed[end or "files without an ending"] += len(group)
    named = {stem for image in images for stem in stems(image)} if texts else set()
    for text in texts:
        if posixpath.splitext(text)[0] in named or posixpath.basename(text) in CAPTION_TABLES:
            tables.append(text)
        else:
            passed[ending(text)] += 1
    skipped = [f"{count:,} {what}" for what, count in passed.most_common()]
    notes = (f"skipped: {printable(', '.join(skipped))}",) if skipped else ()
    return Files(tuple(sorted(images)), tuple(sorted(tables)), notes)


def _is_image(content: bytes) -> bool:
    from PIL import Image

    try:
        with Image.open(BytesIO(content)):
            return True
    except Exception:  # noqa: BLE001 - Pillow's format plugins raise almost any exception on other content
        return False
