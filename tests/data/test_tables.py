"""Tables of images: parquet as the hub lays it out, plainer ones, arrow, and saved datasets."""

from __future__ import annotations

import json
import sys

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ditlab.data import DataConfig, open_data


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
    assert data.source.name(3) == "row 3 (3.png)"


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
    assert loaded.skipped[0] == "row 5: the row contains no image bytes"
    assert loaded.skipped[1].startswith("row 6 (6.png): ")


def test_messages(tmp_path, images, refuses, monkeypatch) -> None:
    path = tmp_path / "x.parquet"
    write_table(path, images, [0, 1, 2, 3, 4], ["a", "b"])
    refuses(lambda: opened(path), "label 4", "2 class names")
    refuses(lambda: opened(path, split="test"), "no test split", "test-*.parquet")
    write_table(path, [], pa.array([], pa.int64()))
    refuses(lambda: opened(path), "no rows")
    whole = write_table(path, images, [0, 1, 0, 1, 0]).read_bytes()
    refuses(lambda: opened(path, image="imgae"), "no column 'imgae'", "'image'")
    refuses(lambda: opened(path, image="label"), "does not contain encoded images")
    refuses(lambda: opened(path, label="lable"), "no column 'lable'", "'label'")
    refuses(lambda: opened(path, label="folder"), "--data.label COLUMN")
    path.write_bytes(whole[:-20])
    refuses(lambda: opened(path), "cannot be read as a table")
    pq.write_table(pa.table({"text": ["a"], "size": [1]}), path)
    refuses(lambda: opened(path), "no column of encoded images", "text, size")
    monkeypatch.setitem(sys.modules, "datasets", None)
    refuses(lambda: opened(path), "datasets", "ditlab[data]")


@pytest.mark.parametrize(
    ("labels", "words"),
    [([-1, 1, 0, 0, 0], "hidden"), ([None, 1, 0, 0, 0], "missing"), ([[0], [1], [0, 1], [], [1]], "lists")],
)
def test_rows_without_one_class_each_are_refused_with_the_way_on(tmp_path, images, refuses, labels, words) -> None:
    path = write_table(tmp_path / "x.parquet", images, labels)
    refuses(lambda: opened(path), words, "--data.label none")
    assert opened(path, label="none").names == ()


def more_columns(path, images, **columns):
    pq.write_table(pa.table({"image": pa.array(images, pa.binary()), **columns}), path)
    return path


@pytest.mark.parametrize(
    ("columns", "names"),
    [
        ({"id": [0, 1, 2, 3, 4]}, ()),  # as many whole numbers as rows
        ({"id": [0, 1, 2, 3, 4], "species": list("ababb")}, ("a", "b")),
        ({"label": [0, 1, 2, 3, 4], "species": list("ababb")}, ("a", "b")),
        ({"size": [8, 8, 9, 9, 9], "species": list("ababb")}, ("a", "b")),  # names of classes before numbers
        ({"label": [1, 0, 1, 0, 0], "class_name": list("ababb")}, ("a", "b")),
        ({"size": [8, 8, 9, 9, 9]}, ("8", "9")),
        ({"note": ["a cat", "a dog", "an emu", "an ant", "a bee"]}, ()),
        ({"score": [0.5, 0.5, 0.1, 0.1, 0.1]}, ()),
    ],
)
def test_the_column_of_classes(tmp_path, images, columns, names) -> None:
    data = opened(more_columns(tmp_path / "x.parquet", images, **columns))
    assert data.names == names
    column = next(iter(columns))
    if not names:
        assert any("--data.label COLUMN" in note and column in note for note in data.info.notes)


def test_columns_by_name(tmp_path, images, pixels) -> None:
    path = tmp_path / "x.parquet"
    kind = pa.binary()
    pq.write_table(
        pa.table({"mask": pa.array(images[::-1], kind), "image": pa.array(images, kind), "size": [1, 1, 2, 2, 2]}), path
    )
    assert np.array_equal(opened(path).read([0])[0][0], pixels(0).transpose(2, 0, 1))
    assert any("others: mask" in note for note in opened(path).info.notes)
    masks = opened(path, image="mask", label="size")
    assert np.array_equal(masks.read([0])[0][0], pixels(4).transpose(2, 0, 1))
    assert masks.names == ("1", "2")


def test_arrow_and_saved_datasets(tmp_path, images, pixels) -> None:
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["a", "b"])})
    rows = {"image": [{"bytes": image, "path": None} for image in images], "label": [0, 1, 1, 0, 1]}
    table = datasets.Dataset.from_dict(rows, features=features)
    table.save_to_disk(tmp_path / "one", num_proc=None)
    datasets.DatasetDict({"train": table, "validation": table.select([0])}).save_to_disk(tmp_path / "two")
    arrow = next((tmp_path / "one").glob("*.arrow"))
    for path in (tmp_path / "one", tmp_path / "two", arrow):
        data = open_data(DataConfig("folder", str(path)))
        assert data.names == ("a", "b")
        assert data.labels.tolist() == [0, 1, 1, 0, 1]
        assert np.array_equal(data.read([4])[0][0], pixels(4).transpose(2, 0, 1))
    assert len(open_data(DataConfig("folder", str(tmp_path / "two"), split="valid"))) == 1


def test_a_table_of_paths(tmp_path, images, pixels) -> None:
    (tmp_path / "a.png").write_bytes(images[2])
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    rows = [{"bytes": None, "path": "a.png"}, {"bytes": None, "path": "b.png"}]
    pq.write_table(pa.table({"image": pa.array(rows, kind)}), tmp_path / "x.parquet")
    data = opened(tmp_path / "x.parquet")
    assert np.array_equal(data.read([0])[0][0], pixels(2).transpose(2, 0, 1))
    data.read([1])
    assert "b.png" in data.skipped[1]
