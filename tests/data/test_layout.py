"""Names of files -> splits and classes, for folders and archives alike."""

from __future__ import annotations

import pytest

from ditlab.data.layout import arrange, image_name


@pytest.mark.parametrize(
    ("name", "clean"),
    [
        ("./cat/a.JPG", "cat/a.JPG"),
        ("a.tiff", "a.tiff"),
        ("/abs/a.png", "abs/a.png"),
        ("../a.png", None),
        ("cat/../../a.png", None),
        (".cache/a.png", None),
        ("__MACOSX/._a.png", None),
        ("notes.txt", None),
    ],
)
def test_image_names(name: str, clean: str | None) -> None:
    assert image_name(name) == clean


def test_classes_are_sorted_folders() -> None:
    layout = arrange(["dog/x/2.png", "cat/1.png", "dog/1.png"], "train", "here")
    assert layout.names == ("cat", "dog")
    assert layout.files == ("cat/1.png", "dog/1.png", "dog/x/2.png")
    assert layout.labels.tolist() == [0, 1, 1]


def test_loose_images_have_no_class() -> None:
    layout = arrange(["b.png", "a.png"], "train", "here")
    assert (layout.names, layout.files, layout.labels.tolist()) == ((), ("a.png", "b.png"), [0, 0])


@pytest.mark.parametrize("folder", ["test", "val", "Validation"])
def test_splits_are_entered(folder: str) -> None:
    files = ["train/cat/1.png", "train/dog/2.png", f"{folder}/cat/3.png"]
    train, test = arrange(files, "train", "here"), arrange(files, "test", "here")
    assert (train.prefix, train.files, train.names) == ("train/", ("cat/1.png", "dog/2.png"), ("cat", "dog"))
    assert (test.prefix, test.files) == (f"{folder}/", ("cat/3.png",))


def test_test_comes_before_validation() -> None:
    files = ["train/1.png", "val/2.png", "test/3.png"]
    assert arrange(files, "test", "here").prefix == "test/"


def test_wrapping_folder_is_entered() -> None:
    layout = arrange(["cifar/train/cat/1.png", "cifar/train/dog/1.png"], "train", "here")
    assert (layout.prefix, layout.names) == ("cifar/train/", ("cat", "dog"))
    assert arrange(["photos/cat/1.png", "photos/dog/1.png"], "train", "here").names == ("cat", "dog")


def test_a_class_called_train_among_others_is_a_class() -> None:
    assert arrange(["train/1.png", "plane/1.png"], "train", "here").names == ("plane", "train")


def test_messages(refuses) -> None:
    refuses(lambda: arrange([], "train", "here"), "here contains no images", "one subfolder", ".png")
    refuses(lambda: arrange(["cat/1.png"], "test", "here"), "no test split", "folder train")
    refuses(lambda: arrange(["train/cat/1.png"], "test", "here"), "no test split", "it has train")
    refuses(lambda: arrange(["a.png", "cat/1.png"], "train", "here"), "1 images next to", "a.png")
