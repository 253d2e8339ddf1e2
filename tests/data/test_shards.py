"""Tar archives in folders and in archives: classes, WebDataset's shards, ImageNet's tar of tars."""

from __future__ import annotations

import io
import json
import tarfile

import numpy as np
import pytest

from ditlab.data import DataConfig, open_data


def tar(files: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as opened:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            opened.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


def opened(path, **fields):
    return open_data(DataConfig("folder", str(path), **fields))


def shard(encode, pixels, first: int, labels: list[int], kind: str) -> bytes:
    """Samples of a WebDataset: images, their classes and a caption each."""
    files = {}
    for key, label in enumerate(labels, first):
        files[f"{key:06d}.png"] = encode(pixels(key))
        files[f"{key:06d}.txt"] = b"a caption"
        files[f"{key:06d}.{kind}"] = str(label).encode() if kind == "cls" else json.dumps({"label": label}).encode()
    return tar(files)


@pytest.mark.parametrize("kind", ["cls", "json"])
def test_a_webdataset(tmp_path, encode, pixels, kind: str) -> None:
    (tmp_path / "train-000000.tar").write_bytes(shard(encode, pixels, 0, [3, 5], kind))
    (tmp_path / "train-000001.tar").write_bytes(shard(encode, pixels, 2, [5, 3, 3], kind))
    (tmp_path / "test-000000.tar").write_bytes(shard(encode, pixels, 9, [3, 5], kind))
    data = opened(tmp_path)
    assert data.names == ("3", "5")
    assert data.labels.tolist() == [0, 1, 1, 0, 0]
    expected = np.stack([pixels(seed).transpose(2, 0, 1) for seed in range(5)])
    assert np.array_equal(data.load().pixels, expected)
    assert len(opened(tmp_path, split="test")) == 2
    assert data.captions == [("a caption",)] * 5
    assert any(f".{kind} files" in note for note in data.info.notes)


def test_one_shard_alone(tmp_path, encode, pixels) -> None:
    (tmp_path / "birds.tar").write_bytes(shard(encode, pixels, 0, [1, 0, 1], "cls"))
    for path in (tmp_path, tmp_path / "birds.tar"):
        assert opened(path).labels.tolist() == [1, 0, 1]


def test_numbered_shards_without_classes_are_no_classes(tmp_path, encode, pixels) -> None:
    for number in range(3):
        (tmp_path / f"{number:05d}.tar").write_bytes(tar({f"{number}.png": encode(pixels(number))}))
    data = opened(tmp_path)
    assert data.names == ()
    assert len(data) == 3


@pytest.mark.parametrize("inside", [False, True])
def test_a_tar_for_each_class(tmp_path, encode, pixels, inside: bool) -> None:
    tars = {
        f"{name}.tar": tar({f"{name}_{k}.png": encode(pixels(k)) for k in range(2)})
        for name in ("n01440764", "n01443537")
    }
    if inside:
        (tmp_path / "train.tar").write_bytes(tar(tars))
    else:
        for name, content in tars.items():
            (tmp_path / name).write_bytes(content)
    data = opened(tmp_path / "train.tar" if inside else tmp_path)
    assert data.names == ("n01440764", "n01443537")
    assert data.labels.tolist() == [0, 0, 1, 1]
    assert np.array_equal(data.read([3])[0][0], pixels(1).transpose(2, 0, 1))


def test_a_damaged_shard_is_one_line(tmp_path, encode, pixels, refuses) -> None:
    content = shard(encode, pixels, 0, [1, 0, 1], "cls")
    (tmp_path / "a-000000.tar").write_bytes(content)
    (tmp_path / "a-000001.tar").write_bytes(content[: len(content) // 2])
    refuses(lambda: opened(tmp_path), "a-000001.tar", "cannot be read")
