"""A folder of images end to end, broken ones included."""

from __future__ import annotations

import json

import numpy as np
import pytest

from ditlab.data import DataConfig, open_data
from ditlab.data.summary import LOOKED_AT


def folder(path, **fields):
    return open_data(DataConfig(source="folder", path=str(path), **fields))


def test_folder(tmp_path, write, photos, pixels) -> None:
    write(tmp_path, {**photos, ".hidden/x.png": b"", "cat/notes.txt": b"", "empty/readme.md": b""})
    data = folder(tmp_path)
    assert data.names == ("cat", "dog")
    assert data.labels.tolist() == [0, 0, 1, 1, 1]
    assert data.labels.dtype == np.int64
    assert data.shape == (3, 6, 6)
    assert data.describe() == f"{tmp_path}: 5 images of 3x6x6, 2 classes"
    images, kept = data.read([4, 0, 3])
    assert kept.tolist() == [4, 0, 3]
    assert images.dtype == np.uint8
    assert np.array_equal(images, np.stack([pixels(seed).transpose(2, 0, 1) for seed in (4, 0, 3)]))


def test_broken_images_are_left_out_and_named(tmp_path, write, photos, encode, pixels) -> None:
    whole = encode(pixels(9, 60, 60), "JPEG")
    photos = {**photos, "cat/0.jpg": whole[: len(whole) // 2], "dog/z.webp": b"", "dog/y.png": b"no image"}
    write(tmp_path, photos)
    (tmp_path / "cat" / "gone.png").symlink_to(tmp_path / "nowhere.png")
    data = folder(tmp_path)
    assert len(data) == 9
    some, kept = data.read([0, 1, 7])
    assert kept.tolist() == [1]
    assert some.shape == (1, 3, 6, 6)
    images = data.load()
    assert (len(images), images.labels.tolist()) == (5, [0, 0, 1, 1, 1])
    assert len(images.skipped) == 4
    named = "; ".join(images.skipped)
    assert "cat/0.jpg: " in named
    assert "truncated" in named
    assert "dog/z.webp: the file is empty" in named
    assert "dog/y.png: not an image" in named
    assert "cat/gone.png: No such file" in named
    assert sorted(data.skipped) == [0, 3, 7, 8]


def test_symbolic_links(tmp_path, write, photos) -> None:
    write(tmp_path / "store", photos)
    root = tmp_path / "root"
    root.mkdir()
    (root / "bird").symlink_to(tmp_path / "store" / "cat")
    (root / "wolf").symlink_to(tmp_path / "store" / "dog")
    (tmp_path / "store" / "dog" / "circle").symlink_to(tmp_path / "store" / "dog")
    data = folder(root)
    assert data.names == ("bird", "wolf")
    assert len(data) == 5


def test_name_that_is_not_utf8(tmp_path, encode, pixels) -> None:
    (tmp_path / "caf\udce9").mkdir()
    (tmp_path / "caf\udce9" / "a.png").write_bytes(encode(pixels(0)))
    (tmp_path / "caf\udce9" / "b\n.png").write_bytes(b"broken")
    images = folder(tmp_path).load()
    assert images.names == ("caf\ufffd",)
    assert images.skipped[0].encode().startswith("caf\ufffd/b .png: ".encode())


def test_sizes(tmp_path, write, photos, encode, pixels, refuses) -> None:
    write(tmp_path, {**photos, "dog/wide.png": encode(pixels(9, 6, 9))})
    refuses(lambda: folder(tmp_path), "dog/wide.png", "6x9", "6x6", "--data.size")
    data = folder(tmp_path, size=(4,))
    assert data.load().shape == (3, 4, 4)
    assert "images: RGB, 6x6 to 6x9 (HxW), cropped to 4x4" in data.info.notes
    assert folder(tmp_path, size=(4, 10)).load().shape == (3, 4, 10)
    assert any("(6 of 6 enlarged)" in note for note in folder(tmp_path, size=(4, 10)).info.notes)
    assert folder(tmp_path, size=(8, 9), fit="pad").load().shape == (3, 8, 9)
    refuses(folder(tmp_path, size=(8, 8), fit="pad").load, "dog/wide.png", "6x9", "8x8", "crop")
    assert folder(tmp_path, size=(4,), channels=1).shape == (1, 4, 4)
    assert folder(tmp_path, size=(4,), channels=4).load().shape == (4, 4, 4)


def test_an_image_of_another_size_that_is_not_among_those_looked_at(tmp_path, encode, pixels, refuses) -> None:
    for index in range(2 * LOOKED_AT):
        (tmp_path / f"{index:04d}.png").write_bytes(encode(pixels(0)))
    (tmp_path / "0001.png").write_bytes(encode(pixels(0, 6, 9)))
    refuses(folder(tmp_path).load, "0001.png", "6x9", "6x6", "--data.size")


@pytest.mark.parametrize(
    ("present", "channels", "said"),
    [
        ((1, 1, 1), 1, "images: grayscale, 6x6"),
        ((1, 3, 1), 3, "images: RGB (of 3 images looked at, 2 grayscale), 6x6"),
        ((1, 4, 4), 3, "images: RGB (of 3 images looked at, 2 RGBA, 1 grayscale), 6x6"),
        ((4, 4, 4), 4, "images: RGBA, 6x6"),
    ],
)
def test_many_images_decide_the_channels(tmp_path, encode, pixels, present, channels, said) -> None:
    for index, each in enumerate(present):
        (tmp_path / f"{index}.png").write_bytes(encode(pixels(0, channels=each)))
    data = folder(tmp_path)
    assert data.load().shape == (channels, 6, 6)
    assert data.describe().endswith(f"3 images of {channels}x6x6, no classes")
    assert f"{said} (HxW)" in data.info.notes


def test_larger_images_are_decoded_in_threads(tmp_path, encode, pixels) -> None:
    for seed in range(40):
        (tmp_path / f"{seed:02d}.png").write_bytes(encode(pixels(seed, 40, 40)))
    (tmp_path / "07.png").write_bytes(b"broken")
    data = folder(tmp_path)
    assert data.source.threaded
    images = data.load()
    seeds = [seed for seed in range(40) if seed != 7]
    assert np.array_equal(images.pixels, np.stack([pixels(seed, 40, 40).transpose(2, 0, 1) for seed in seeds]))
    (tmp_path / "39.png").write_bytes(encode(pixels(0, 41, 40)))
    with pytest.raises(Exception, match=r"39\.png has size 41x40"):
        folder(tmp_path).load()


def test_messages(tmp_path, write, photos, refuses) -> None:
    refuses(lambda: folder(tmp_path), str(tmp_path), "contains no images")
    refuses(lambda: folder(tmp_path / "none"), "none does not exist")
    refuses(lambda: folder(""), "'folder' needs a path", "--data.path")
    write(tmp_path, photos)
    refuses(lambda: folder(tmp_path / "cat" / "a.png"), "a.png is one image", "folder")
    refuses(lambda: folder(tmp_path, split="test"), "no test split")
    (tmp_path / "cat" / "notes.txt").write_text("hello")
    refuses(lambda: folder(tmp_path / "cat" / "notes.txt"), "notes.txt", ".tar", ".parquet")
    write(tmp_path / "bad", {"a.png": b"x", "b.png": b"y"})
    refuses(lambda: folder(tmp_path / "bad"), "none of the 2 images", "a.png: not an image")


def test_folders_without_images_are_named_and_are_no_classes(tmp_path, write, photos) -> None:
    write(tmp_path, photos)
    (tmp_path / "emu").mkdir()
    (tmp_path / "@eaDir").mkdir()
    data = folder(tmp_path)
    assert data.names == ("cat", "dog")
    assert "folders without images, which are no classes: emu" in data.info.notes


def test_the_counts_of_classes_and_an_imbalance_are_said(tmp_path, write, encode, pixels) -> None:
    write(
        tmp_path, {f"cat/{index}.png": encode(pixels(index)) for index in range(10)} | {"dog/0.png": encode(pixels(0))}
    )
    data = folder(tmp_path)
    assert data.info.counts == (10, 1)
    assert data.info.notes[:2] == ("classes: cat 10, dog 1", "imbalance: cat has 10 times as many images as dog")


def test_a_class_of_a_table_without_images(tmp_path, write, encode, pixels) -> None:
    rows = {"labels": [["a.png", 0], ["b.png", 2], ["gone.png", 1]]}
    write(tmp_path, {"a.png": encode(pixels(0)), "b.png": encode(pixels(1)), "dataset.json": json.dumps(rows).encode()})
    assert folder(tmp_path).names == ("0", "2")
