"""The captions of each image: from a table, text files of the images' names, or .json files."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

from ditlab.data.metadata import Metadata, Row
from ditlab.data.source import Captions, printable
from ditlab.errors import UserError, nearest

COLUMNS = (  # of captions, the first that gives some, in any case
    "text", "caption", "captions", "prompt", "texts", "prompts", "txt", "sentence", "sentences", "description",
)  # fmt: skip
HINT = "captions found; --text.kind tokens trains on them"
_TEXT_FILES = (".txt", ".caption")
_NO_WORDS = re.compile(r"[\d\s.,;:eE+-]*")  # boxes of a detector: 0 0.5 0.5 0.2 0.2
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")  # would act on a terminal
_EXAMPLE = 100  # characters

Found = tuple[Captions, str, list[str]]  # captions of each image, what they are from, and notes


def find_captions(metadata: Metadata, caption: str = "", label: str = "") -> tuple[Captions, tuple[str, ...]]:
    """Captions of each image, None without any, and notes.

    ``caption`` names a column of a table, a key of .json files, ``txt`` or ``none``; empty takes the first that gives some
    of: metadata.jsonl or .csv, .txt files, .json files, captions.csv. The column ``label`` is not one of captions unless
    ``caption`` names it. Raises a UserError if ``caption`` gives none, or the table that it names is damaged.
    """
    if caption == "none":
        return None, ()
    ways: list[Callable[[Metadata, str, str], Found]] = [_of_table, _of_text_files, _of_json_files, _of_captions_table]
    notes = []
    for way in [_of_text_files] if caption == "txt" else ways:
        if caption not in ("", "txt") and way is _of_text_files:
            continue
        try:
            captions, source, more = way(metadata, caption, label)
        except UserError as error:
            if caption or way not in (_of_table, _of_captions_table):  # such a table may be of something else
                raise
            notes.append(f"not used for captions: {error}")
            continue
        notes += more
        if captions is not None:
            return captions, (*notes, f"captions from {source}")
    if caption:
        known = (*sorted(_known(metadata)), "txt", "none")
        raise UserError(f"{metadata.where} has no captions by --data.caption {caption}; {nearest(caption, known)}")
    return None, tuple(notes)


def is_caption(column: str, caption: str = "") -> bool:
    """Whether a column is one of captions, by its name or because ``caption`` names it."""
    return column.lower() in COLUMNS or (column == caption != "")


def caption_columns(columns: Sequence[str], caption: str = "", label: str = "") -> list[str]:
    """The columns that may hold captions, best first."""
    if caption:
        return [caption] if caption in columns else []
    known = [column for column in columns if column.lower() in COLUMNS and column != label]
    return sorted(known, key=lambda column: COLUMNS.index(column.lower()))


def captions_of(value: Any) -> tuple[str, ...]:
    """The captions in a value of a table: of text one, of a list of texts several, of anything else none."""
    values = value if isinstance(value, list | tuple) else [value]
    return tuple(clean for each in values if isinstance(each, str) and (clean := clean_caption(each)))


def clean_caption(text: str) -> str:
    """In NFC, with single spaces for control characters, line ends and other white space, and ? for half a character."""
    whole = text.encode("utf-8", "replace").decode()  # JSON may contain one of two surrogates
    return " ".join(_CONTROL.sub(" ", unicodedata.normalize("NFC", whole)).split())


def example(caption: str) -> str:
    """A caption that fits a line of the log, in quotation marks."""
    short = caption if len(caption) <= _EXAMPLE else f"{caption[: _EXAMPLE - 3].rstrip()}..."
    return f'"{short}"'


def caption_lines(captions: Captions) -> list[str]:
    """Lines for the user: how many images have captions."""
    if captions is None:
        return []
    counts = Counter(min(len(each), 2) for each in captions)
    total, one, several, none = len(captions), counts[1], counts[2], counts[0]
    parts = [f"{one:,} of {total:,} images have one"] * (one > 0 or not several)
    if several:
        parts.append(f"{several:,}{f' of {total:,} images' * (not one)} {'has' if several == 1 else 'have'} several")
    line = f"captions: {', '.join(parts)}"
    line += f"; {none:,} without {'is' if none == 1 else 'are'} trained as unconditional" if none else ""
    return [line, HINT]


def _of_table(metadata: Metadata, caption: str, label: str) -> Found:
    rows, source = metadata.table
    return _of_rows(metadata.of_images(rows), source, caption, label)


def _of_json_files(metadata: Metadata, caption: str, label: str) -> Found:
    return _of_rows([[row] for row in metadata.sidecars(".json")], ".json files", caption, label)


def _of_captions_table(metadata: Metadata, caption: str, label: str) -> Found:
    rows, source = metadata.captions_table
    columns = _columns([row for each in rows for row in each[:1]])
    if not caption and len(columns) == 1:  # file name and caption, whatever their names
        caption = columns[0]
    return _of_rows(rows, source, caption, label)


def _of_rows(rows: list[list[Row]], source: str, caption: str, label: str) -> Found:
    """Captions of images with any number of rows each."""
    for column in caption_columns(_columns([row for each in rows for row in each]), caption, label):
        found = [tuple(text for row in each for text in captions_of(row.get(column))) for each in rows]
        if any(found):
            return found, f"{source}, column {printable(column)}", []
    return None, "", []


def _of_text_files(metadata: Metadata, caption: str, label: str) -> Found:
    del caption, label  # the whole file is captions
    for kind in _TEXT_FILES:
        rows = metadata.sidecars(kind)
        texts = [row.get("text", "") for row in rows]
        found = [captions_of(text.splitlines()) if "\0" not in text else () for text in texts]
        if not any(found):
            continue
        if all(_NO_WORDS.fullmatch(line) for each in found for line in each):
            return None, "", [f"no captions: the {kind} files next to the images hold numbers"]
        encodings = Counter(row["encoding"] for row, each in zip(rows, found, strict=True) if each and row["encoding"])
        said = [
            f"{count:,} {kind} file{'s' * (count != 1)} read as {name}, not UTF-8" for name, count in encodings.items()
        ]
        return found, f"{kind} files", said
    return None, "", []


def _known(metadata: Metadata) -> set[str]:
    """Columns of all tables and keys of .json files."""
    tables = (metadata.of_images(metadata.table[0]), metadata.captions_table[0], [metadata.sidecars(".json")])
    return {name for rows in tables for each in rows for row in each for name in row}


def _columns(rows: Sequence[Row]) -> list[str]:
    """Names of the columns of rows, in order of appearance."""
    return list(dict.fromkeys(name for row in rows for name in row))
