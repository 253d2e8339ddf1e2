"""Images at URLs are copied once and read from the copy."""

from __future__ import annotations

import fsspec
import huggingface_hub
import pytest

from ditlab.data import DataConfig, open_data


@pytest.fixture
def bucket(photos, monkeypatch, tmp_path):
    """Files of a remote file system: of fsspec's, in memory."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    memory = fsspec.filesystem("memory")
    for name, content in photos.items():
        memory.pipe(f"/bucket/photos/{name}", content)
    yield memory
    memory.rm("/bucket", recursive=True)


def test_a_folder_at_a_url_is_copied_once(bucket, pixels) -> None:
    config = DataConfig("folder", "memory://bucket/photos/")
    first = open_data(config)
    assert first.names == ("cat", "dog")
    assert (first.read([0])[0][0] == pixels(0).transpose(2, 0, 1)).all()
    bucket.pipe("/bucket/photos/cat/z.png", b"added later")
    assert open_data(config).fingerprint == first.fingerprint


def test_a_download_goes_on_where_it_was_stopped(bucket, monkeypatch, refuses) -> None:
    real, fetched = type(bucket).get_file, []

    def fail_once(self, path, local, **options):
        fetched.append(path)
        if "dog" in path and len(fetched) < 10:
            raise OSError("connection reset")
        return real(self, path, local, **options)

    monkeypatch.setattr(type(bucket), "get_file", fail_once)
    refuses(
        lambda: open_data(DataConfig("folder", "memory://bucket/photos")), "connection reset", "run the same command"
    )
    fetched[:] = [""] * 10
    assert len(open_data(DataConfig("folder", "memory://bucket/photos"))) == 5
    assert not any("cat/a" in path for path in fetched)


def test_what_cannot_be_reached_is_one_line(bucket, refuses, monkeypatch, tmp_path) -> None:
    refuses(lambda: open_data(DataConfig("folder", "memory://bucket/photo")), "memory://bucket/photo", "no files")
    refuses(lambda: open_data(DataConfig("folder", "memry://bucket")), "memry", "did you mean 'memory'")
    refuses(lambda: open_data(DataConfig("folder", "hf://datasets/name")), "hf://datasets/OWNER/NAME")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    refuses(lambda: open_data(DataConfig("folder", "hf://datasets/someone/birds")), "someone/birds", "cannot download")


def test_a_data_set_of_the_hub_is_a_folder(monkeypatch, tmp_path, write, photos) -> None:
    asked = []

    def snapshot(name, **options):
        asked.append((name, options))
        return str(write(tmp_path / "snapshot", photos))

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot)
    assert open_data(DataConfig("folder", "hf://datasets/someone/birds@v2")).names == ("cat", "dog")
    assert asked == [("someone/birds", {"repo_type": "dataset", "revision": "v2"})]
