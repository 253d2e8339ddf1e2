"""Parquet files as the hub lays them out, and plainer ones."""

from __future__ import annotations

import json
import sys

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ditlab.data import DataConfig, open_data, parquet


def write_table(path, images, labels, names=None, column="label", plain=False):
    """A parquet file; ``images`` are encoded bytes (or None) and ``names`` become the hub's metadata."""
    kind = pa.binary() if plain else pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    rows = images if plain else [None if i is None else {"bytes": i, "path": f"{n}.png"} for n, i in enumerate(images)]
    columns = {"image": pa.array(rows, kind)}
    if labels is not None:
        columns[column] = pa.array(labels)
    table = pa.table(columns)
    if names is not None:
        features = {"image": {"_type": "Image"}, column: {"names": names, "_type": "ClassLabel"}}
        table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    pq.write_table(table, path, row_group_size=2)
    return path


def opened(path, **fields):
    return open_data(DataConfig(source="parquet", path=str(path), **fields))


@pytest.fixture
def images(pixels, encode) -> list[bytes]:
    return [encode(pixels(seed)) for seed in range(5)]


@pytest.mark.parametrize("column", ["label", "labels", "fine_label", "anything"])
def test_hub_layout(tmp_path, images, pixels, column: str) -> None:
    path = write_table(tmp_path / "x.parquet", images, [2, 0, 1, 0, 2], ["cat", "dog", "emu"], column)
    data = opened(path)
    assert data.names == ("cat", "dog", "emu")
    assert data.labels.tolist() == [2, 0, 1, 0, 2]
    expected = np.stack([pixels(seed).transpose(2, 0, 1) for seed in range(5)])
    assert np.array_equal(data.load().pixels, expected)
    assert data.source.name(3) == "x.parquet row 3 (3.png)"


def test_plain_bytes_and_labels_without_names(tmp_path, images) -> None:
    data = open_data(
        DataConfig("folder", str(write_table(tmp_path / "x.parquet", images, [7, 5, 7, 5, 5], plain=True)))
    )
    assert data.names == ("5", "7")
    assert data.labels.tolist() == [1, 0, 1, 0, 0]


def test_text_labels_and_none(tmp_path, images) -> None:
    assert opened(write_table(tmp_path / "a.parquet", images, list("baabb"))).names == ("a", "b")
    unlabelled = opened(write_table(tmp_path / "b.parquet", images, None))
    assert unlabelled.names == ()
    assert unlabelled.labels.tolist() == [0] * 5


def test_folder_of_splits(tmp_path, images) -> None:
    inner = tmp_path / "data"
    inner.mkdir()
    for part in (0, 1):
        write_table(inner / f"train-0000{part}-of-00002.parquet", images, [0, 1, 0, 1, 0], ["a", "b"])
    write_table(inner / "test-00000-of-00001.parquet", images[:2], [0, 1], ["a", "b"])
    write_table(inner / "validation-00000-of-00001.parquet", images[:3], [0, 1, 1], ["a", "b"])
    assert len(opened(tmp_path)) == 10
    assert len(opened(tmp_path, split="test")) == 2
    assert len(open_data(DataConfig("folder", str(tmp_path)))) == 10
    assert opened(tmp_path).fingerprint != opened(tmp_path, split="test").fingerprint


def test_broken_rows_are_left_out(tmp_path, images) -> None:
    rows = [*images, None, images[0][:60]]
    data = opened(write_table(tmp_path / "x.parquet", rows, [0] * 7))
    loaded = data.load()
    assert len(loaded) == 5
    assert loaded.skipped[0] == "x.parquet row 5: the row contains no image bytes"
    assert loaded.skipped[1].startswith("x.parquet row 6 (6.png): ")


def test_messages(tmp_path, images, refuses, monkeypatch) -> None:
    path = tmp_path / "x.parquet"
    write_table(path, images, [0, 1, 2, 3, 4], ["a", "b"])
    refuses(lambda: opened(path), "label 4", "2 class names")
    refuses(lambda: opened(path, split="test"), "no test split", "test-*.parquet")
    write_table(path, images, [-1, 1, 0, 0, 0], ["a", "b"])
    refuses(lambda: opened(path), "label -1")
    write_table(path, images, [None, 1, 0, 0, 0])
    refuses(lambda: opened(path), "column label", "one label")
    write_table(path, [], pa.array([], pa.int64()))
    refuses(lambda: opened(path), "no rows")
    whole = write_table(path, images, [0, 1, 0, 1, 0]).read_bytes()
    monkeypatch.setattr(parquet, "MEMORY_LIMIT", 100)
    refuses(lambda: opened(path), "more than", "unpack it")
    path.write_bytes(whole[:-20])
    refuses(lambda: opened(path), "cannot be read as parquet")
    pq.write_table(pa.table({"text": ["a"], "size": [1]}), path)
    refuses(lambda: opened(path), "no column of encoded images", "text, size")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    refuses(lambda: opened(path), "pyarrow", "ditlab[formats]")
