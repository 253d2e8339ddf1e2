"""Archives give what the folder gives; damaged ones say so."""

from __future__ import annotations

import bz2
import gzip
import lzma
import sys
import tarfile
import zipfile
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO

import numpy as np
import pytest
import zstandard

from ditlab.data import DataConfig, archive, open_data

COMPRESS = {
    ".tar": bytes,
    ".tar.gz": gzip.compress,
    ".tgz": gzip.compress,
    ".tar.bz2": bz2.compress,
    ".tar.xz": lzma.compress,
    ".tar.zst": zstandard.ZstdCompressor().compress,
}


def tar_bytes(files: dict[str, bytes]) -> bytes:
    buffer = BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, BytesIO(content))
    return buffer.getvalue()


def zip_bytes(files: dict[str, bytes], method: int = zipfile.ZIP_STORED) -> bytes:
    buffer = BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as opened:
        for name, content in files.items():
            opened.writestr(name, content)
    return buffer.getvalue()


def archived(path, **fields):
    return open_data(DataConfig(source="folder", path=str(path), **fields))


@pytest.fixture
def reference(tmp_path, write, photos):
    return archived(write(tmp_path / "reference", photos)).load()


@pytest.mark.parametrize("suffix", COMPRESS)
def test_tars(tmp_path, photos, reference, suffix: str) -> None:
    path = tmp_path / f"photos{suffix}"
    path.write_bytes(COMPRESS[suffix](tar_bytes(photos)))
    images = archived(path).load()
    assert np.array_equal(images.pixels, reference.pixels)
    assert np.array_equal(images.labels, reference.labels)
    assert images.names == reference.names
    assert images.fingerprint == reference.fingerprint


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_zip(tmp_path, photos, reference, method: int) -> None:
    path = tmp_path / "photos.zip"
    path.write_bytes(zip_bytes({f"photos/{name}": content for name, content in photos.items()}, method))
    images = archived(path).load()
    assert np.array_equal(images.pixels, reference.pixels)
    assert images.names == reference.names
    assert images.fingerprint == reference.fingerprint


def test_first_bytes_tell_the_format(tmp_path, photos, reference) -> None:
    path = tmp_path / "download"
    path.write_bytes(zstandard.ZstdCompressor().compress(tar_bytes(photos)))
    data = open_data(DataConfig(source="archive", path=str(path)))
    assert np.array_equal(data.load().pixels, reference.pixels)


def test_splits(tmp_path, photos) -> None:
    path = tmp_path / "photos.tar.zst"
    files = {f"train/{name}": content for name, content in photos.items()} | {"test/cat/t.png": photos["cat/a.png"]}
    path.write_bytes(COMPRESS[".tar.zst"](tar_bytes(files)))
    assert len(archived(path)) == 5
    assert len(archived(path, split="test")) == 1


def test_links_repeats_and_unsafe_names(tmp_path, photos) -> None:
    image = photos["cat/a.png"]
    files = {"cat/a.png": b"older", "../evil.png": image, "./cat/b.png": image, "cat/.hidden.png": image}
    path = tmp_path / "photos.tar"
    path.write_bytes(tar_bytes(files))
    with tarfile.open(path, "a") as tar:
        info = tarfile.TarInfo("cat/a.png")
        info.size = len(image)
        tar.addfile(info, BytesIO(image))
        for name, kind, target in [
            ("cat/hard.png", tarfile.LNKTYPE, "cat/a.png"),
            ("cat/soft.png", tarfile.SYMTYPE, "b.png"),
            ("cat/out.png", tarfile.SYMTYPE, "../../etc/passwd"),
        ]:
            link = tarfile.TarInfo(name)
            link.type, link.linkname = kind, target
            tar.addfile(link)
    before = sorted(tmp_path.rglob("*"))
    data = archived(path)
    names = [data.source.name(index) for index in range(len(data))]
    assert names == [f"cat/{name}.png" for name in ("a", "b", "hard", "soft")]
    assert len(data.load()) == 4
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("suffix", [".tar", ".zip"])
def test_reads_from_many_threads(tmp_path, encode, pixels, suffix: str) -> None:
    files = {f"{seed:03d}.png": encode(pixels(seed, 8, 8)) for seed in range(60)}
    path = tmp_path / f"photos{suffix}"
    path.write_bytes(tar_bytes(files) if suffix == ".tar" else zip_bytes(files, zipfile.ZIP_DEFLATED))
    data = archived(path)
    with ThreadPoolExecutor(8) as pool:
        results = list(pool.map(lambda index: data.read([index])[0][0], list(range(60)) * 5))
    for place, image in enumerate(results):
        assert np.array_equal(image, pixels(place % 60, 8, 8).transpose(2, 0, 1))


def test_broken_members_are_left_out(tmp_path, photos, encode, pixels) -> None:
    files = {**photos, "dog/z.png": encode(pixels(9, 40, 40))}
    content = bytearray(zip_bytes(files))
    start = content.index(files["dog/z.png"])
    content[start + 200] ^= 255
    path = tmp_path / "photos.zip"
    path.write_bytes(content)
    skipped = archived(path).load().skipped
    assert len(skipped) == 1
    assert skipped[0].startswith("dog/z.png: Bad CRC")


@pytest.mark.parametrize("suffix", [*COMPRESS, ".zip"])
def test_truncated(tmp_path, encode, pixels, refuses, suffix: str) -> None:
    files = {f"cat/{seed}.png": encode(pixels(seed, 40, 40)) for seed in range(5)}
    content = zip_bytes(files) if suffix == ".zip" else COMPRESS[suffix](tar_bytes(files))
    path = tmp_path / f"photos{suffix}"
    for keep in (len(content) * 2 // 3, 3, 0):
        path.write_bytes(content[:keep])
        refuses(lambda: archived(path), str(path), "cannot be read")


def test_damaged_header_is_not_taken_for_the_end(tmp_path, photos, refuses) -> None:
    content = bytearray(tar_bytes(photos))
    content[content.index(b"dog/c.png")] ^= 255
    path = tmp_path / "photos.tar"
    path.write_bytes(content)
    refuses(lambda: archived(path), "damaged or truncated at byte")


def test_memory_limit(tmp_path, photos, refuses, monkeypatch) -> None:
    monkeypatch.setattr(archive, "MEMORY_LIMIT", 1000)
    content = tar_bytes(photos)
    (tmp_path / "photos.tar").write_bytes(content)
    assert len(archived(tmp_path / "photos.tar")) == 5
    (tmp_path / "photos.tgz").write_bytes(gzip.compress(content))
    refuses(lambda: archived(tmp_path / "photos.tgz"), "photos.tgz", "unpack it")


def test_other_messages(tmp_path, photos, refuses, monkeypatch) -> None:
    (tmp_path / "empty.zip").write_bytes(zip_bytes({"notes.txt": b"hello"}))
    refuses(lambda: archived(tmp_path / "empty.zip"), "empty.zip contains no images")
    content = bytearray(zip_bytes({"a.png": photos["cat/a.png"]}))
    content[content.index(b"PK\x01\x02") + 8] |= 1
    (tmp_path / "locked.zip").write_bytes(content)
    refuses(lambda: archived(tmp_path / "locked.zip"), "encrypted", "a.png")
    (tmp_path / "photos.tar.zst").write_bytes(COMPRESS[".tar.zst"](tar_bytes(photos)))
    monkeypatch.setitem(sys.modules, "zstandard", None)
    refuses(lambda: archived(tmp_path / "photos.tar.zst"), "zstandard", "ditlab[data]")


@pytest.mark.parametrize(
    ("raw", "names", "said"),
    [
        ("blåbær".encode(), ("blåbær",), False),  # UTF-8 without the mark, as older programs write
        ("blåbær".encode("cp437"), ("blåbær",), True),
        ("кот".encode("cp866"), ("кот".encode("cp866").decode("cp437"),), True),
    ],
)
def test_zip_names_of_another_code_page_are_decoded_or_said(tmp_path, encode, pixels, raw, names, said) -> None:
    placeholder = "x" * len(raw)
    content = zip_bytes({f"{placeholder}/{index}.png": encode(pixels(index)) for index in range(2)})
    (tmp_path / "a.zip").write_bytes(content.replace(placeholder.encode(), raw))
    data = open_data(DataConfig("archive", str(tmp_path / "a.zip")))
    assert data.names == names
    assert any("code page" in note for note in data.info.notes) == said
    assert len(data.load()) == 2
