"""Captions of one's own images: files of the images' names, tables, archives; which text is a caption and which a class."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ditlab.data import DataConfig, Dataset, open_data, read_index, write_index
from ditlab.data.captions import HINT
from ditlab.data.layout import Layout, arrange

NAMES = ("a.png", "b.png", "c.png", "d.png")
TEXTS = ("a red cat", "a blue dog, sitting", "two cats", "a dog")
ROWS = [{"file_name": name, "text": text} for name, text in zip(NAMES, TEXTS, strict=True)]
ONE_EACH = [(text,) for text in TEXTS]


def arranged(files: Mapping[str, bytes | str], label: str = "", caption: str = "", images=NAMES) -> Layout:
    content = {name: text.encode() if isinstance(text, str) else text for name, text in files.items()}
    content |= dict.fromkeys(images, b"")
    return arrange(content, "train", "here", label, content.__getitem__, caption=caption)


def jsonl(*rows: dict) -> str:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def stem(name: str) -> str:
    return name.removesuffix(".png")


@pytest.fixture
def images(pixels, encode) -> dict[str, bytes]:
    return {name: encode(pixels(seed)) for seed, name in enumerate(NAMES)}


def opened(path: Path, **fields) -> Dataset:
    return open_data(DataConfig("folder", str(path), **fields))


@pytest.mark.parametrize("kind", ["folder", "tar", "zip", "gztar"])
def test_text_files_of_the_images_names(tmp_path, write, images, kind: str) -> None:
    texts = {f"{stem(name)}.txt": text.encode() for name, text in zip(NAMES[:3], TEXTS, strict=False)}
    folder = write(
        tmp_path / "photos", {**images, **texts, "c.txt": b"two cats\r\n\r\n  cats of\tred  \r\n", "notes.txt": b"x"}
    )
    path = folder if kind == "folder" else Path(shutil.make_archive(str(folder), kind, folder))
    data = opened(path)
    expected = [("a red cat",), ("a blue dog, sitting",), ("two cats", "cats of red"), ()]
    assert data.captions == expected
    assert data.load().captions == expected
    assert data.names == ()
    assert data.describe().endswith("no classes, captions")
    said = "captions: 2 of 4 images have one, 1 has several; 1 without is trained as unconditional"
    assert [note for note in data.info.notes if "captions" in note] == [said, HINT, "captions from .txt files"]
    assert "skipped: 1 .txt" in data.info.notes
    assert opened(path, caption="none").captions is None
    limited = opened(path, limit=2)
    assert limited.captions == [expected[row] for row in limited._chosen]
    assert any("of 2 images" in note for note in limited.info.notes)


@pytest.mark.parametrize(
    ("content", "text", "said"),
    [
        ("\ufeffcaf\u00e9\r\n".encode(), "caf\u00e9", ""),
        ("cafe\u0301".encode(), "caf\u00e9", ""),
        ("caf\u00e9 \u201cbleu\u201d".encode("cp1252"), "caf\u00e9 \u201cbleu\u201d", "Windows-1252"),
        (b"caf\xe9 \x81", "caf\u00e9 \ufffd", "Windows-1252"),
        ("caf\u00e9".encode("utf-16"), "caf\u00e9", "UTF-16"),
        (b"word " * 40_000, "word " * 39_999 + "word", ""),
        ("\u7ea2\u8272\u7684\u732b".encode(), "\u7ea2\u8272\u7684\u732b", ""),
    ],
    ids=["mark", "NFC", "1252", "latin-1", "utf-16", "long", "chinese"],
)  # fmt: skip
def test_text_files_of_any_encoding_and_length(content: bytes, text: str, said: str) -> None:
    layout = arranged({"a.txt": content, "b.txt": b"plain", "c.txt": b"\x89PNG\0\0", "d.txt": b" \r\n"})
    assert layout.captions == [(text,), ("plain",), (), ()]
    assert [note for note in layout.notes if "read as" in note] == [f"1 .txt file read as {said}, not UTF-8"] * bool(
        said
    )


def test_text_files_of_numbers_are_no_captions() -> None:
    layout = arranged({f"{stem(name)}.txt": "0 0.5 0.5 0.25 1e-3\n1 0 0 1 1\n" for name in NAMES})
    assert layout.captions is None
    assert layout.notes == ("no captions: the .txt files next to the images hold numbers",)
    assert arranged({"a.txt": "3 red cats", "b.txt": "3"}).captions == [("3 red cats",), ("3",), (), ()]
    assert arranged({"a.txt": "", "b.txt": "\n"}).captions is None


def test_text_files_in_folders_of_classes_and_of_names_with_dots() -> None:
    images = ("cat/1.png", "cat/2.v2.png", "dog/1.png")
    files = {"cat/1.txt": "one", "cat/2.txt": "two", "dog/1.caption": "not used", "dog/1.txt": "three"}
    layout = arranged(files, images=images)
    assert (layout.names, layout.captions) == (("cat", "dog"), [("one",), ("two",), ("three",)])
    assert arranged({"dog/1.caption": "used"}, images=images).captions == [(), (), ("used",)]


@pytest.mark.parametrize("column", ["text", "caption", "Prompt", "captions"])
@pytest.mark.parametrize("kind", ["jsonl", "csv"])
def test_a_column_of_metadata_gives_captions(column: str, kind: str) -> None:
    rows = [{"file_name": row["file_name"], column: row["text"]} for row in ROWS]
    lines = "".join(f'{row["file_name"]},"{row[column]}"\r\n' for row in rows)
    table = jsonl(*rows) if kind == "jsonl" else f"file_name,{column}\r\n{lines}"
    layout = arranged({f"metadata.{kind}": table})
    assert (layout.names, layout.captions) == ((), ONE_EACH)
    assert layout.notes == (f"captions from metadata.{kind}, column {column}",)


def test_lists_and_repeated_rows_are_several_captions_in_order() -> None:
    rows = [{"file_name": "a.png", "text": ["z", " y ", "", 3, "x"]}, {"file_name": "b.png", "text": None}, *ROWS[2:3]]
    assert arranged({"metadata.jsonl": jsonl(*rows)}).captions == [("z", "y", "x"), (), ("two cats",), ()]
    rows = [*ROWS, {"file_name": "a.png", "text": "again"}]
    assert arranged({"metadata.jsonl": jsonl(*rows)}).captions == [("a red cat", "again"), *ONE_EACH[1:]]


def test_text_in_a_table_may_hold_any_character_and_length() -> None:
    long = "word " * 40_000
    texts = ["a\u2028b\x1b[31m", 'say "red"\r\nnow', long, "\x1cx, y"]
    rows = [{"file_name": name, "text": text} for name, text in zip(NAMES, texts, strict=True)]
    expected = [("a b [31m",), ('say "red" now',), (long.strip(),), ("x, y",)]
    assert arranged({"metadata.jsonl": jsonl(*rows)}).captions == expected
    assert arranged({"metadata.jsonl": '{"file_name": "a.png", "text": "half \\ud83d"}'}).captions == [
        ("half ?",),
        (),
        (),
        (),
    ]
    quoted = "".join(f'{row["file_name"]},"{row["text"].replace(chr(34), chr(34) * 2)}"\r\n' for row in rows)
    assert arranged({"metadata.csv": "\ufefffile_name,text\r\n" + quoted}).captions == expected
    assert arranged({"metadata.csv": "file_name,text\na.png,caf\u00e9\n".encode("cp1252")}).captions == [
        ("caf\u00e9",),
        (),
        (),
        (),
    ]


@pytest.mark.parametrize(
    ("name", "table"),
    [
        ("captions.csv", "file_name,caption\na.png,one\na.png,\"two, three\"\n./c.png,four\n"),
        ("captions.txt", "image,caption\na.png,one\na.png,\"two, three\"\nc.png,four\n"),
        ("captions.tsv", "image\twhat it shows\na.png\tone\na.png\ttwo, three\nc.png\tfour\n"),
        ("captions.csv", "image| number| text\na.png| 0| one\na.png| 1| two, three\nc.png| 0| four\n"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("folder", ["", "Images/"])
def test_captions_csv_with_several_rows_an_image(name: str, table: str, folder: str) -> None:
    layout = arranged({name: table}, images=[folder + image for image in NAMES])
    assert layout.captions == [("one", "two, three"), (), ("four",), ()]
    assert layout.notes[-1].startswith(f"captions from {name}, column ")


def test_prose_and_names_of_several_images_in_captions_tables() -> None:
    assert arranged({"captions.txt": "These captions, made by hand,\nare good.\n"}).captions is None
    images = ("x/a.png", "y/a.png")
    assert arranged({"captions.csv": "image,caption\nx/a.png,one\n"}, images=images).captions == [("one",), ()]
    assert arranged({"captions.csv": "image,caption\na.png,one\n"}, images=images).captions is None


def test_json_files_of_a_webdataset_give_captions_and_no_classes_by_accident() -> None:
    """As img2dataset writes them: the same text in .txt, sizes and states next to it."""
    rows = {f"{stem(name)}.json": json.dumps({"caption": text, "width": 256 + index // 2, "status": "success"})
            for index, (name, text) in enumerate(zip(NAMES, TEXTS, strict=True))}  # fmt: skip
    layout = arranged(rows)
    assert (layout.names, layout.captions) == ((), ONE_EACH)
    assert layout.notes[-1] == "captions from .json files, column caption"
    assert arranged({**rows, "a.txt": "other"}).captions == [("other",), (), (), ()]
    assert arranged({**rows, "a.txt": "other"}, caption="caption").captions == ONE_EACH
    assert arranged(rows, "width").names == ("256", "257")


def test_a_column_of_captions_is_one_of_classes_only_when_it_is_named() -> None:
    rows = [{"file_name": name, "text": f"a {'cd'[k % 2]}", "artist": "xy"[k // 2]} for k, name in enumerate(NAMES)]
    table = {"metadata.jsonl": jsonl(*rows)}
    plain = arranged(table)
    assert (plain.names, plain.captions) == ((), [("a c",), ("a d",)] * 2)
    assert any("no column of classes among artist" in note for note in plain.notes)
    named = arranged(table, "text")
    assert (named.names, named.captions) == (("a c", "a d"), None)
    both = arranged(table, "text", "text")
    assert (both.names, both.captions) == (("a c", "a d"), plain.captions)
    other = arranged(table, caption="artist")
    assert (other.names, other.captions) == ((), [("x",), ("x",), ("y",), ("y",)])
    classes = {"metadata.jsonl": jsonl(*({**row, "label": row["artist"]} for row in rows))}
    layout = arranged(classes)
    assert (layout.names, layout.captions) == (("x", "y"), plain.captions)


@pytest.mark.parametrize(
    ("files", "caption", "words"),
    [
        ({"metadata.jsonl": jsonl(*ROWS)}, "txt", ["--data.caption txt", "text"]),
        ({"metadata.jsonl": jsonl(*ROWS)}, "tex", ["--data.caption tex", "did you mean 'text'"]),
        ({"a.txt": "one"}, "text", ["--data.caption text", "'txt'"]),
        ({"metadata.jsonl": jsonl({"file_name": "a.png", "text": 3})}, "text", ["--data.caption text"]),
        ({"captions.csv": "a.png,one\n"}, "text", ["captions.csv", "file_name and caption"]),
        ({"metadata.csv": "file_name,text\na.png,red, blue\n"}, "text", ["metadata.csv", "line 2", "in quotes"]),
        ({"a.json": '{"caption": "one"}'}, "prompt", ["--data.caption prompt", "caption"]),
    ],
)
def test_captions_that_are_asked_for_and_are_not_there(refuses, files, caption: str, words: list[str]) -> None:
    refuses(lambda: arranged(files, caption=caption), *words)


def test_a_damaged_table_of_captions_is_said() -> None:
    layout = arranged({"captions.csv": "a.png,one\n", "a.txt": ""})
    assert layout.captions is None
    assert "captions.csv in here has no header" in layout.notes[-1]
    layout = arranged({"captions.csv": "image,text\na.png,red, blue\n"})
    assert "line 2 has more columns than the header; put text with commas in quotes" in layout.notes[-1]
    layout = arranged({"metadata.jsonl": "{", "a.txt": "one"}, "none")
    assert layout.captions == [("one",), (), (), ()]
    assert "metadata.jsonl in here cannot be read" in layout.notes[0]


@pytest.mark.parametrize("change", ["a.txt", "metadata.jsonl", "captions.csv"])
def test_an_index_is_of_the_captions_as_they_were(tmp_path, write: Callable, images, change: str) -> None:
    content = {"a.txt": "one", "metadata.jsonl": jsonl(*ROWS), "captions.csv": "image,text\na.png,one\n"}[change]
    folder = write(tmp_path / "photos", {**images, change: content.encode()})
    config, index = DataConfig("folder", str(folder)), tmp_path / "index.json"
    first = open_data(config)
    write_index(index, first)
    assert read_index(index, config) == first.info
    assert read_index(index, DataConfig("folder", str(folder), caption="none")) is None
    before = folder.stat().st_mtime_ns
    (folder / change).write_text(content.replace("one", "another").replace("red", "green"))
    os.utime(folder, ns=(before, before))  # the folder's entries did not change
    assert read_index(index, config) is None
    second = open_data(config)
    assert second.info.captions != first.info.captions
    assert second.fingerprint == first.fingerprint  # images and latents stay


def table(path: Path, images: dict[str, bytes], **columns) -> Path:
    pq.write_table(pa.table({"image": pa.array(list(images.values()), pa.binary()), **columns}), path)
    return path


@pytest.mark.parametrize(
    ("columns", "fields", "captions", "names"),
    [
        ({"text": list(TEXTS)}, {}, ONE_EACH, ()),
        ({"TEXT": list(TEXTS), "width": [8, 8, 9, 9]}, {}, ONE_EACH, ()),
        ({"captions": [["x", "y"], [], None, ["z"]]}, {}, [("x", "y"), (), (), ("z",)], ()),
        ({"caption": [None] * 3 + [""], "text": ["p", "q"] * 2}, {}, [("p",), ("q",)] * 2, ()),
        ({"text": ["p", "q"] * 2, "label": [0, 1, 1, 0]}, {}, [("p",), ("q",)] * 2, ("0", "1")),
        ({"text": ["p", "q"] * 2}, {"label": "text"}, None, ("p", "q")),
        ({"text": ["p", "q"] * 2, "story": list(TEXTS)}, {"caption": "story"}, ONE_EACH, ()),
        ({"text": list(TEXTS)}, {"caption": "none"}, None, ()),
        ({"text": [1, 2, 3, 4]}, {}, None, ()),
    ],
)
def test_a_table_with_a_column_of_text(tmp_path, images, columns, fields, captions, names) -> None:
    path = table(tmp_path / "x.parquet", images, **{name: pa.array(values) for name, values in columns.items()})
    data = opened(path, **fields)
    assert (data.captions, data.names) == (captions, names)
    column = fields.get("caption") or next((name for name in columns if name.lower() in ("text", "captions")), "")
    assert (f"captions from column {column}" in data.info.notes) == (captions is not None)


def test_columns_of_tables_that_are_no_captions_are_one_line(tmp_path, images, refuses) -> None:
    path = table(tmp_path / "x.parquet", images, text=pa.array([""] * 4), size=pa.array([1, 2, 1, 2]))
    refuses(lambda: opened(path, caption="tex"), "'tex'", "does not exist", "did you mean 'text'")
    refuses(lambda: opened(path, caption="size"), "'size'", "is not of text", "text")
    refuses(lambda: opened(path, caption="text"), "'text'", "no captions")


def test_captions_of_images_that_cannot_be_decoded_are_left_out(tmp_path, write, images) -> None:
    texts = {f"{stem(name)}.txt": text.encode() for name, text in zip(NAMES, TEXTS, strict=True)}
    loaded = opened(write(tmp_path / "x", {**images, **texts, "b.png": b"broken"})).load()
    assert loaded.captions == [ONE_EACH[0], *ONE_EACH[2:]]
    assert len(loaded) == 3
    assert np.array_equal(loaded.labels, np.zeros(3))


def test_a_file_of_captions_that_cannot_be_read_is_one_line(tmp_path, write, images, refuses) -> None:
    folder = write(tmp_path / "x", images)
    (folder / "a.txt").symlink_to("nowhere")
    refuses(lambda: opened(folder), "a.txt", "No such file", "remove it")
