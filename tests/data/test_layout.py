"""Names of files -> splits and classes, for folders and archives alike."""

from __future__ import annotations

import io
import json

import numpy as np
import pytest
from PIL import Image

from ditlab.data.layout import Layout, arrange
from ditlab.data.listing import clean_name, select


@pytest.mark.parametrize(
    ("name", "clean"),
    [
        ("./cat/a.JPG", "cat/a.JPG"),
        ("/abs/a.png", "abs/a.png"),
        ("../a.png", None),
        ("cat/../../a.png", None),
        (".cache/a.png", None),
        ("__MACOSX/._a.png", None),
    ],
)
def test_clean_names(name: str, clean: str | None) -> None:
    assert clean_name(name) == clean


def png() -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.zeros((2, 2), np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


def test_images_are_what_pillow_reads_whatever_the_ending() -> None:
    content = {
        "a.jpg_large": png(),
        "b": png(),
        "c.dat": b"no image",
        "d.txt": png(),
        "e.AVIF": b"",
        "f.jfif": b"",
        "g.svg": b"",
    }
    files = select(content, content.__getitem__)
    assert files.images == ("a.jpg_large", "b", "e.AVIF", "f.jfif")
    assert files.notes == ("skipped: 1 .svg, 1 .dat, 1 .txt",)


@pytest.mark.parametrize(
    "folder", ["@eaDir", "__MACOSX", "#recycle", "$RECYCLE.BIN", "System Volume Information", "lost+found"]
)
def test_folders_of_systems_are_passed_over_and_named(folder: str) -> None:
    files = select(["cat/1.png", f"cat/{folder}/1.png/THUMB.jpg", f"{folder}/x.png"], lambda name: b"")
    assert files.images == ("cat/1.png",)
    assert f"2 files in {folder}" in files.notes[0]


def test_classes_are_sorted_folders() -> None:
    layout = arrange(["dog/x/2.png", "cat/1.png", "dog/1.png"], "train", "here")
    assert layout.names == ("cat", "dog")
    assert layout.files == ("cat/1.png", "dog/1.png", "dog/x/2.png")
    assert layout.labels.tolist() == [0, 1, 1]
    assert layout.notes == ()


def test_loose_images_have_no_class() -> None:
    layout = arrange(["b.png", "a.png"], "train", "here")
    assert (layout.names, layout.files, layout.labels.tolist()) == ((), ("a.png", "b.png"), [0, 0])


@pytest.mark.parametrize("folder", ["test", "testing", "eval", "Evaluation", "val", "valid", "Validation", "dev"])
@pytest.mark.parametrize("train", ["train", "Training"])
def test_splits_are_entered(folder: str, train: str) -> None:
    files = [f"{train}/cat/1.png", f"{train}/dog/2.png", f"{folder}/cat/3.png"]
    trained, tested = arrange(files, "train", "here"), arrange(files, "test", "here")
    assert (trained.prefix, trained.files, trained.names) == (f"{train}/", ("cat/1.png", "dog/2.png"), ("cat", "dog"))
    assert (tested.prefix, tested.files) == (f"{folder}/", ("cat/3.png",))


def test_test_comes_before_validation_which_can_be_named(refuses) -> None:
    files = ["train/1.png", "val/2.png", "test/3.png"]
    assert arrange(files, "test", "here").prefix == "test/"
    assert arrange(files, "valid", "here").prefix == "val/"
    refuses(lambda: arrange(files[::2], "valid", "here"), "no valid split", "test, train")


def test_wrapping_folder_is_entered() -> None:
    layout = arrange(["cifar/train/cat/1.png", "cifar/train/dog/1.png"], "train", "here")
    assert (layout.prefix, layout.names) == ("cifar/train/", ("cat", "dog"))
    assert arrange(["photos/cat/1.png", "photos/dog/1.png"], "train", "here").names == ("cat", "dog")


def test_a_folder_next_to_train_that_names_no_split_is_a_question(refuses) -> None:
    for files in (["train/1.png", "plane/1.png"], ["train/cat/1.png", "test/cat/1.png", "extra/cat/1.png"]):
        refuses(
            lambda files=files: arrange(files, "train", "here"), "next to", "--data.path here/t", "--data.label folder"
        )
    assert arrange(["train/1.png", "plane/1.png"], "train", "here", "folder").names == ("plane", "train")
    assert arrange(["train/1.png", "plane/1.png", "bus/1.png"], "train", "here").names == ("bus", "plane", "train")


def test_splits_in_the_names_of_all_files_are_obeyed() -> None:
    files = ["train_1.png", "train-2.png", "test_1.png", "val.png"]
    assert arrange(files, "train", "here").files == ("train-2.png", "train_1.png")
    assert arrange(files, "test", "here").files == ("test_1.png",)
    assert arrange([*files, "a.png"], "train", "here").files == tuple(sorted([*files, "a.png"]))


def labelled(files: dict[str, bytes | str], label: str = "") -> Layout:
    content = {name: text.encode() if isinstance(text, str) else text for name, text in files.items()}
    return arrange(content, "train", "here", label, content.__getitem__)


def jsonl(*rows: dict) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


IMAGES = {"a.png": b"", "b.png": b"", "c.png": b"", "d.png": b""}
ROWS = [{"file_name": name, "label": label} for name, label in zip(IMAGES, ("dog", "cat", "dog", "cat"), strict=True)]


@pytest.mark.parametrize(
    "table",
    [
        {"metadata.jsonl": jsonl(*ROWS)},
        {"metadata.csv": "file_name,label\na.png,dog\nb.png,cat\nc.png,dog\nd.png,cat\n"},
        {"dataset.json": json.dumps({"labels": [[row["file_name"], row["label"]] for row in ROWS]})},
        {f"{row['file_name'][:-4]}.cls": row["label"] for row in ROWS},
    ],
    ids=["jsonl", "csv", "dataset.json", "cls"],
)
def test_a_table_next_to_the_images_gives_their_classes(table: dict[str, str]) -> None:
    layout = labelled({**IMAGES, **table})
    assert (layout.names, layout.labels.tolist()) == (("cat", "dog"), [1, 0, 1, 0])
    assert "classes from" in layout.notes[-1]
    assert labelled({**IMAGES, **table}, "none").names == ()


def test_a_table_comes_before_folders_unless_folders_are_asked_for() -> None:
    files = {f"{'xy'[k // 2]}/{name}": b"" for k, name in enumerate(IMAGES)}
    rows = [{**row, "file_name": name} for name, row in zip(files, ROWS, strict=True)]
    assert labelled({**files, "metadata.jsonl": jsonl(*rows)}).names == ("cat", "dog")
    assert labelled({**files, "metadata.jsonl": jsonl(*rows)}, "folder").names == ("x", "y")


def test_descriptions_next_to_images_in_class_folders_are_no_classes() -> None:
    files = {f"{name}/{k}.{kind}": text for name in ("cat", "dog") for k in range(3) for kind, text in (
        ("png", b""), ("json", json.dumps({"category": "photo site", "id": k}))
    )}  # fmt: skip
    assert labelled(files).names == ("cat", "dog")
    assert labelled(files, "category").names == ("photo site",)


def test_each_folder_may_have_its_own_table() -> None:
    inner = {f"{folder}/{name}": b"" for folder in "xy" for name in ("a.png", "b.png")}
    tables = {f"{folder}/metadata.jsonl": jsonl(*ROWS[:2]) for folder in "xy"}
    assert labelled({**inner, **tables}).labels.tolist() == [1, 0, 1, 0]


@pytest.mark.parametrize(
    ("rows", "label", "words"),
    [
        ([{**row, "label": -1} for row in ROWS], "", ["hidden (-1)", "--data.label none"]),
        ([{**row, "label": [1, 2]} for row in ROWS], "", ["lists", "--data.label none"]),
        (ROWS[:3], "", ["missing for 1 of 4", "--data.label none"]),
        (ROWS, "colour", ["no column 'colour'", "label"]),
        ([{"label": "cat"}], "", ["metadata.jsonl", "no column file_name"]),
    ],
    ids=["hidden", "lists", "missing", "column", "file_name"],
)
def test_classes_that_cannot_be_used_are_one_line_and_can_be_turned_off(refuses, rows, label, words) -> None:
    files = {**IMAGES, "metadata.jsonl": jsonl(*rows)}
    refuses(lambda: labelled(files, label), *words)
    assert labelled(files, "none").names == ()


def test_columns_that_are_no_classes_are_said() -> None:
    texts = [{"file_name": name, "note": "a cat"} for name in IMAGES]
    layout = labelled({**IMAGES, "metadata.jsonl": jsonl(*texts)})
    assert layout.names == ()
    assert "no column of classes among note; --data.label COLUMN" in layout.notes[-1]
    assert labelled({**IMAGES, "metadata.jsonl": jsonl(*texts)}, "note").names == ("a cat",)
    numbers = [{"file_name": name, "label": k} for k, name in enumerate(IMAGES)]
    layout = labelled({**IMAGES, "metadata.jsonl": jsonl(*numbers)})
    assert layout.names == ()
    assert "another whole number for every image" in layout.notes[-1]


def test_numbers_are_sorted_as_numbers_and_names_are_in_nfc() -> None:
    assert (
        labelled({f"{k}.png": b"" for k in range(22)} | {f"{k}.cls": str(k % 11) for k in range(22)}).names[-1] == "10"
    )
    assert labelled({"Cafe\u0301/1.png": b"", "tea/1.png": b""}).names == ("Caf\u00e9", "tea")


@pytest.mark.parametrize(
    "files", [[f"{k // 1000:05d}/img{k:08d}.png" for k in (1, 999, 1000, 2500)], ["00000/00012.png", "01000/01234.png"]]
)
def test_folders_of_thousands_are_no_classes(files: list[str]) -> None:
    layout = arrange(files, "train", "here")
    assert (layout.names, layout.notes) == ((), ("folders of thousands are no classes",))
    assert len(arrange(files, "train", "here", "folder").names) > 1


def test_words_before_a_number_are_classes_but_for_those_of_cameras() -> None:
    files = [f"{name}_{k:04d}.png" for name in ("cat", "dog") for k in range(4)]
    layout = arrange(files, "train", "here")
    assert (layout.names, layout.labels.tolist()) == (("cat", "dog"), [0] * 4 + [1] * 4)
    assert "file names" in layout.notes[-1]
    assert arrange(files, "train", "here", "none").names == ()
    assert arrange([file.replace("cat", "IMG") for file in files], "train", "here").names == ()
    assert arrange(files[:4], "train", "here").names == ()
    assert arrange(files[:4], "train", "here", "filename").names == ("cat",)


def test_messages(refuses) -> None:
    refuses(lambda: arrange([], "train", "here"), "here contains no images", "one subfolder", "PNG")
    refuses(lambda: arrange(["notes.txt"], "train", "here"), "no images", "1 .txt")
    refuses(lambda: arrange(["cat/1.png"], "test", "here"), "no test split", "folder train")
    refuses(lambda: arrange(["train/cat/1.png"], "test", "here"), "no test split", "it has train")
    refuses(lambda: arrange(["a.png", "cat/1.png"], "train", "here"), "1 images next to", "a.png", "--data.label none")
    refuses(lambda: arrange(["a.png"], "train", "here", "colour"), "no classes by --data.label colour")
