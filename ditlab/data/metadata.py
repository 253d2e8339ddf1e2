"""What files next to images say of them: tables of all images, and a file for each image."""

from __future__ import annotations

import csv
import io
import json
import posixpath
import re
import sys
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cache, cached_property
from typing import Any

from ditlab.errors import UserError

Read = Callable[[str], bytes]
Row = dict[str, Any]

TABLES = ("metadata.jsonl", "metadata.csv", "dataset.json")
CAPTION_TABLES = ("captions.csv", "captions.tsv", "captions.txt")
_FILE_COLUMNS = ("file_name", "filename", "image", "file", "path", "filepath", "image_name", "name")  # of captions.csv


class Metadata:
    """What the files ``names`` say of ``images`` (full names), each file read once; ``where`` is for messages.

    A damaged table raises a UserError when it is used.
    """

    def __init__(self, images: Sequence[str], names: Sequence[str], read: Read, where: str) -> None:
        self.images, self._names, self._read, self.where = images, names, read, where
        self._present = set(names)
        self.sidecars = cache(self._sidecars)

    @cached_property
    def table(self) -> tuple[dict[str, list[Row]], str]:
        """Rows by image name in NFC of the first kind of table that has some, and its name, empty without a table."""
        rows, source = dict[str, list[Row]](), ""
        for table in self._names:
            folder, name = posixpath.split(table)
            if source and name != source:  # metadata.jsonl may be in several folders
                break
            if name not in TABLES:
                continue
            try:
                for file, row in _table_rows(name, self._read(table)):
                    rows.setdefault(normal(posixpath.join(folder, file)), []).append(row)
            except (ValueError, KeyError, TypeError, AttributeError, csv.Error) as error:
                reason = "no column file_name" if isinstance(error, KeyError) else str(error)
                raise UserError(
                    f"{table} in {self.where} cannot be read ({reason}); repair it, or give --data.label folder"
                ) from error
            source = name if rows else source
        return rows, source

    def of_images(self, rows: dict[str, list[Row]]) -> list[list[Row]]:
        """The rows of each image, empty without one."""
        return [rows.get(unicodedata.normalize("NFC", image), []) for image in self.images]

    @cached_property
    def captions_table(self) -> tuple[list[list[Row]], str]:
        """Rows of each image from captions.csv, .tsv or .txt, and its name; one image may have several rows.

        An image is named by its path from the table, or by its file name if no other image has the same.
        """
        for table in self._names:
            folder, name = posixpath.split(table)
            if name not in CAPTION_TABLES:
                continue
            try:
                found = _captions(self._read(table))
            except (ValueError, csv.Error) as error:
                if name.endswith("txt"):  # prose
                    continue
                raise UserError(f"{table} in {self.where} cannot be read ({error}); repair it") from error
            if not found and name.endswith("txt"):
                continue
            if not found:
                raise UserError(
                    f"{table} in {self.where} has no header with file_name and caption; give it these columns"
                )
            full, short = dict[str, list[Row]](), dict[str, list[Row]]()
            for file, row in found:
                full.setdefault(normal(posixpath.join(folder, file)), []).append(row)
                short.setdefault(posixpath.basename(normal(file)), []).append(row)
            bases = [posixpath.basename(normal(image)) for image in self.images]
            unique = len(set(bases)) == len(bases)
            rows = self.of_images(full)
            if unique:
                rows = [exact or short.get(base, []) for exact, base in zip(rows, bases, strict=True)]
            return rows, name
        return [], ""

    def _sidecars(self, kind: str) -> list[Row]:
        """For each image the content of the file of the same name and another ending, empty without one.

        ``.cls``: the column ``label``; ``.json``: its columns; others: ``text``, and ``encoding`` unless it is UTF-8.
        """
        return [self._row(image, kind) for image in self.images]

    def _row(self, image: str, kind: str) -> Row:
        file = next((path for stem in stems(image) if (path := stem + kind) in self._present), None)
        if file is None:
            return {}
        if kind not in (".cls", ".json"):
            text, encoding = decode_text(self._read(file))
            return {"text": text, "encoding": encoding}
        text = self._read(file).decode("utf-8", "replace").strip()
        if kind == ".cls":
            return {"label": int(text) if re.fullmatch(r"-?\d+", text) else text}
        try:
            row = json.loads(text)
        except ValueError:
            return {}
        return row if isinstance(row, dict) else {}


def stems(image: str) -> tuple[str, str]:
    """Names of an image without its last ending, and without all (000123.seg.png: 000123, as in a WebDataset)."""
    folder, base = posixpath.split(image)
    return posixpath.splitext(image)[0], posixpath.join(folder, base.split(".", 1)[0])


def normal(name: str) -> str:
    """A relative name in NFC without ``./`` and the like."""
    return unicodedata.normalize("NFC", posixpath.normpath(name.replace("\\", "/")))


def decode_text(content: bytes) -> tuple[str, str]:
    """Text of UTF-8 or UTF-16 with its mark, else of Windows-1252, and the encoding's name where it is not UTF-8."""
    if content.startswith((b"\xff\xfe", b"\xfe\xff")):
        return content.decode("utf-16", "replace"), "UTF-16"
    try:
        return content.decode("utf-8-sig"), ""
    except UnicodeDecodeError:
        return content.decode("cp1252", "replace"), "Windows-1252"


def _table_rows(name: str, content: bytes) -> Iterator[tuple[str, Row]]:
    """File name and columns of each row of metadata.jsonl, metadata.csv or dataset.json."""
    if name == "dataset.json":
        for file, value in json.loads(content).get("labels") or ():
            yield file, {"label": value}
        return
    if name.endswith("csv"):
        rows: Iterable[Row] = _reader(decode_text(content)[0], ",")
    else:
        rows = (json.loads(line) for line in content.decode("utf-8-sig").split("\n") if line.strip())
    for row in rows:
        yield row.pop("file_name"), row


def _captions(content: bytes) -> list[tuple[str, Row]]:
    """File name and columns of each row of a table of captions, separated by comma, tab, semicolon or bar."""
    text = decode_text(content)[0]
    header = text.split("\n", 1)[0]
    rows = list(_reader(text, max(",\t;|", key=header.count)))
    columns = {str(name).strip().lower(): name for row in rows[:1] for name in row}
    file = next((columns[name] for name in _FILE_COLUMNS if name in columns), None)
    if file is None or len(columns) < 2:
        return []
    return [(str(row[file]).strip(), {str(name).strip(): row[name] for name in row if name != file}) for row in rows]


def _reader(text: str, delimiter: str) -> Iterator[Row]:
    """Rows of a table with a header; a ValueError for one with more columns than the header."""
    csv.field_size_limit(sys.maxsize)  # the limit of 128 KiB is of the whole process, and a caption may be longer
    reader = csv.DictReader(io.StringIO(text, newline=""), delimiter=delimiter, skipinitialspace=True)
    for row in reader:
        if None in row:
            raise ValueError(f"line {reader.line_num} has more columns than the header; put text with commas in quotes")
        yield row
