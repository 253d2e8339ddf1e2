"""IDX files and the places where fashion and mnist are looked for."""

from __future__ import annotations

import gzip
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ditlab.data import DataConfig, idx, open_data


def idx_bytes(values: np.ndarray, kind: int = 8) -> bytes:
    return bytes([0, 0, kind, values.ndim]) + np.array(values.shape, ">u4").tobytes() + values.tobytes()


def write_set(
    folder: Path, count: int = 7, stem: str = "train", zipped: bool = True, channels: tuple[int, ...] = ()
) -> np.ndarray:
    """The two files of a split with `count` images of 5x4; returns the pixels."""
    folder.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(count).integers(0, 256, (count, 5, 4, *channels), np.uint8)
    labels = (np.arange(count) % 10).astype(np.uint8)
    for name, values in ((f"{stem}-images-idx3-ubyte", pixels), (f"{stem}-labels-idx1-ubyte", labels)):
        content = idx_bytes(values)
        (folder / (name + ".gz" * zipped)).write_bytes(gzip.compress(content) if zipped else content)
    return pixels


@pytest.fixture(autouse=True)
def nowhere(tmp_path, monkeypatch) -> None:
    """No system package, an empty cache and no hub, whatever this machine has."""
    fashion = replace(idx.KNOWN["fashion"], system=str(tmp_path / "system"))
    monkeypatch.setitem(idx.KNOWN, "fashion", fashion)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)


@pytest.mark.parametrize("zipped", [True, False])
def test_files_of_a_folder(tmp_path, zipped: bool) -> None:
    pixels = write_set(tmp_path / "here", zipped=zipped)
    write_set(tmp_path / "here", 3, "t10k", zipped)
    data = open_data(DataConfig("fashion", str(tmp_path / "here")))
    assert data.shape == (1, 5, 4)
    assert data.names[9] == "ankle boot"
    assert data.labels.tolist() == list(range(7))
    assert np.array_equal(data.load().pixels[:, 0], pixels)
    assert len(open_data(DataConfig("mnist", str(tmp_path / "here"), "test"))) == 3


def test_colour_idx(tmp_path) -> None:
    pixels = write_set(tmp_path, channels=(3,))
    data = open_data(DataConfig("mnist", str(tmp_path)))
    assert np.array_equal(data.load().pixels, pixels.transpose(0, 3, 1, 2))
    assert open_data(DataConfig("mnist", str(tmp_path), channels=1)).shape == (1, 5, 4)


def test_search_order(tmp_path, refuses) -> None:
    write_set(tmp_path / "cache" / "ditlab" / "fashion", 4)
    write_set(tmp_path / "cache" / "ditlab" / "mnist", 5)
    assert len(open_data(DataConfig("fashion"))) == 4
    assert len(open_data(DataConfig("mnist"))) == 5
    write_set(tmp_path / "system", 6)
    assert len(open_data(DataConfig("fashion"))) == 6
    assert len(open_data(DataConfig("mnist"))) == 5
    write_set(tmp_path / "mine", 7)
    assert len(open_data(DataConfig("fashion", str(tmp_path / "mine")))) == 7
    refuses(lambda: open_data(DataConfig("fashion", str(tmp_path))), str(tmp_path), "train-images-idx3-ubyte")


@pytest.mark.parametrize(
    ("source", "repository"), [("fashion", "zalando-datasets/fashion_mnist"), ("mnist", "ylecun/mnist")]
)
def test_fetched_from_the_hub(tmp_path, monkeypatch, encode, source: str, repository: str) -> None:
    rows = [{"bytes": encode(np.full((5, 4, 1), shade, np.uint8)), "path": None} for shade in (1, 2, 3)]
    pq.write_table(pa.table({"image": rows, "label": [9, 0, 9]}), tmp_path / "set.parquet")
    asked = []

    def download(*args, **options) -> str:
        asked.append((args, options))
        return str(tmp_path / "set.parquet")

    monkeypatch.delitem(sys.modules, "huggingface_hub")
    monkeypatch.setattr("huggingface_hub.hf_hub_download", download)
    data = open_data(DataConfig(source, split="test"))
    folder = {"fashion": "fashion_mnist", "mnist": "mnist"}[source]
    assert asked == [((repository, f"{folder}/test-00000-of-00001.parquet"), {"repo_type": "dataset"})]
    assert data.names == idx.KNOWN[source].names
    assert data.labels.tolist() == [9, 0, 9]
    assert data.load().pixels[:, 0, 0, 0].tolist() == [1, 2, 3]

    def unreachable(*args, **options) -> str:
        raise ConnectionError("no route\nto host")

    monkeypatch.setattr("huggingface_hub.hf_hub_download", unreachable)
    with pytest.raises(Exception, match=rf"downloading {repository} failed \(ConnectionError\); .*four IDX files"):
        open_data(DataConfig(source))


def test_nowhere_to_be_found(refuses) -> None:
    refuses(lambda: open_data(DataConfig("fashion")), "apt install dataset-fashion-mnist", "--data.path", "ditlab[hub")
    refuses(lambda: open_data(DataConfig("mnist")), "mnist is not on this machine", "--data.path")


def test_damaged_files(tmp_path, refuses) -> None:
    values = np.zeros((2, 3, 3), np.uint8)
    path = tmp_path / "x-idx3-ubyte"

    def read(content: bytes):
        path.write_bytes(content)
        return lambda: idx.read_idx(path)

    good = idx_bytes(values)
    assert read(good)().shape == (2, 3, 3)
    refuses(read(good[:-1]), str(path), "17 values", "18")
    refuses(read(good + b"x"), "19 values")
    refuses(read(good[:9]), "not an IDX file")
    refuses(read(b""), "not an IDX file", "nothing")
    refuses(read(b"\xff\xd8" + good), "not an IDX file", "ffd8")
    refuses(read(idx_bytes(values, 13)), "0x0d", "0x08")
    refuses(read(gzip.compress(good)[:-9]), str(path), "cannot be read")


def test_pairs_that_do_not_match(tmp_path, refuses) -> None:
    write_set(tmp_path, zipped=False)
    labels = tmp_path / "train-labels-idx1-ubyte"
    labels.write_bytes(idx_bytes(np.zeros(6, np.uint8)))
    refuses(lambda: open_data(DataConfig("mnist", str(tmp_path))), str(labels), "(6,)", "7 images")
    labels.write_bytes(idx_bytes(np.full(7, 12, np.uint8)))
    refuses(lambda: open_data(DataConfig("mnist", str(tmp_path))), "label 12", "0 to 9")
    (tmp_path / "train-images-idx3-ubyte").write_bytes(idx_bytes(np.zeros((7, 2), np.uint8)))
    refuses(lambda: open_data(DataConfig("mnist", str(tmp_path))), "shape (7, 2)")
