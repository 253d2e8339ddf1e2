"""The index of a data set, and one process that lists files for several."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ditlab.data import DataConfig, open_data, read_index, write_index


@pytest.fixture(params=["folder", "photos.tar", "photos.zip", "digits"])
def config(request: pytest.FixtureRequest, tmp_path: Path, write: Callable, photos: dict[str, bytes]) -> DataConfig:
    if request.param == "digits":
        return DataConfig(limit=20)
    folder = write(tmp_path / "photos", photos)
    if request.param == "folder":
        return DataConfig("folder", str(folder))
    return DataConfig("archive", shutil.make_archive(str(folder), request.param[-3:], folder))


def test_an_index_gives_what_listing_gave_and_images_are_read_when_asked_for(
    tmp_path: Path, config: DataConfig
) -> None:
    listed = open_data(config)
    write_index(tmp_path / "index.json", listed)
    info = read_index(tmp_path / "index.json", replace(config, flip=True))
    assert info == listed.info
    lazy = open_data(config, info=info)
    assert not lazy.listed
    assert (len(lazy), lazy.shape, lazy.names) == (len(listed), listed.shape, listed.names)
    assert (lazy.fingerprint, lazy.describe()) == (listed.fingerprint, listed.describe())
    assert not lazy.listed
    assert np.array_equal(lazy.labels, listed.labels)
    assert np.array_equal(lazy.load().pixels, listed.load().pixels)


def test_an_index_is_of_one_config_and_of_files_as_they_were(tmp_path: Path, config: DataConfig) -> None:
    path = tmp_path / "index.json"
    assert read_index(path, config) is None
    write_index(path, open_data(config))
    others: list[dict[str, Any]] = [{"size": (4,)}, {"fit": "pad"}, {"channels": 1}, {"limit": 3}, {"split": "test"}]
    for other in others:
        assert read_index(path, replace(config, **other)) is None
    assert read_index(path, config) is not None
    if config.path:
        os.utime(config.path, ns=(0, 5))
        assert read_index(path, config) is None
        write_index(path, open_data(config))
        Path(config.path).rename(tmp_path / "moved")
        assert read_index(path, config) is None


@pytest.mark.parametrize("content", ["", "[1]", "{}", '{"config": {}, "stamps": {}, "info": {}}', "\0"])
def test_a_damaged_index_counts_as_none(tmp_path: Path, content: str) -> None:
    write_index(tmp_path / "index.json", open_data(DataConfig()))
    (tmp_path / "index.json").write_text(content)
    assert read_index(tmp_path / "index.json", DataConfig()) is None


def test_images_that_changed_since_they_were_described_are_refused(
    tmp_path: Path, write: Callable, photos: dict[str, bytes], refuses: Callable
) -> None:
    config = DataConfig("folder", str(write(tmp_path / "photos", photos)))
    info = open_data(config).info
    (tmp_path / "photos" / "cat" / "a.png").unlink()
    refuses(lambda: open_data(config, info=info).labels, "photos have changed", "ditlab encode")


@pytest.mark.parametrize("kind", ["folder", "tar"])
def test_of_several_processes_one_lists_the_files(
    tmp_path: Path, write: Callable, photos: dict[str, bytes], kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write(tmp_path / "photos", photos)
    config = DataConfig("folder", str(folder if kind == "folder" else shutil.make_archive(str(folder), kind, folder)))
    results: list[Any] = []

    def main(make: Callable[[], Any]) -> Any:
        results.append(make())
        return results[-1]

    def other(make: Callable[[], Any]) -> Any:  # as broadcast_from_main, whose other processes never call it
        return results.pop(0)

    first = open_data(config, main)

    def listing(*arguments: object) -> None:
        raise AssertionError("listed again")

    monkeypatch.setattr(os, "scandir", listing)
    monkeypatch.setattr("tarfile.open", listing)
    second = open_data(config, other)
    assert not results
    assert second.info == first.info
    assert np.array_equal(second.load().pixels, first.load().pixels)
