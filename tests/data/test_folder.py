"""A folder of images end to end, broken ones included."""

from __future__ import annotations

import numpy as np
import pytest

from ditlab.data import DataConfig, open_data


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
    data = folder(tmp_path)
    refuses(data.load, "dog/wide.png", "6x9", "6x6", "--data.size")
    assert folder(tmp_path, size=(4,)).load().shape == (3, 4, 4)
    assert folder(tmp_path, size=(4, 10)).load().shape == (3, 4, 10)
    assert folder(tmp_path, size=(8, 9), fit="pad").load().shape == (3, 8, 9)
    refuses(folder(tmp_path, size=(8, 8), fit="pad").load, "dog/wide.png", "6x9", "8x8", "crop")
    assert folder(tmp_path, size=(4,), channels=1).shape == (1, 4, 4)
    assert folder(tmp_path, size=(4,), channels=4).load().shape == (4, 4, 4)


def test_first_image_sets_the_channels(tmp_path, encode, pixels) -> None:
    (tmp_path / "a.png").write_bytes(encode(pixels(0, channels=1)))
    (tmp_path / "b.png").write_bytes(encode(pixels(0, channels=4)))
    data = folder(tmp_path)
    assert data.load().shape == (1, 6, 6)
    assert data.names == ()
    assert data.describe().endswith("2 images of 1x6x6, no classes")


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
