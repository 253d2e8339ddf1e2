import binascii
import json
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from forked import Forked
from PIL import Image

from ditlab.data import DataConfig, Dataset, open_data
from ditlab.encoders import Autoencoder, LatentCache, cache, cache_key, encode, record, shards
from ditlab.errors import UserError

SHARD = 100
DIGITS = DataConfig(source="digits", limit=250)  # three shards, the last one half full


@pytest.fixture(autouse=True)
def small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache, "SHARD", SHARD)


@pytest.fixture
def digits() -> Dataset:
    return open_data(DIGITS)


def photos(folder: Path, broken: tuple[int, ...]) -> Dataset:
    """A folder of 230 RGB pictures in two classes, some of them cut off."""
    random = np.random.default_rng(0)
    for index in range(230):
        path = folder / ("cat" if index < 150 else "dog") / f"{index:03d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(random.integers(0, 256, (8, 12, 3), np.uint8)).save(path)
        if index in broken:
            path.write_bytes(path.read_bytes()[:60])
    return open_data(DataConfig(source="folder", path=str(folder)))


class Counting(Autoencoder):
    """The pixel identity, which counts the images it encodes and can be told to give up before the n-th."""

    def __init__(self, channels: int, last: int = 10**9):
        super().__init__(channels, channels, 1)
        self.seen, self.last = 0, last

    def encode(self, pixels: torch.Tensor) -> torch.Tensor:
        if self.seen >= self.last:
            raise RuntimeError("power cut")
        self.seen += len(pixels)
        return super().encode(pixels)


def opened(dataset: Dataset, autoencoder: Autoencoder, folder: Path, flip: bool = False) -> LatentCache:
    return LatentCache(folder, cache_key(dataset, autoencoder, flip))


def read_all(latents: LatentCache, flip: bool = False) -> np.ndarray:
    return latents.read(np.arange(len(latents)), np.full(len(latents), flip))


def test_rows_are_the_encodings_in_half_precision_and_flips_those_of_mirrored_images(
    digits: Dataset, kl: Callable, tmp_path: Path
):
    autoencoder = kl()
    told: list[tuple[int, int]] = []
    skipped = encode(digits, autoencoder, tmp_path, flip=True, batch=32, progress=lambda *now: told.append(now))
    latents = opened(digits, autoencoder, tmp_path, flip=True)
    assert skipped == ()
    assert (len(latents), latents.shape) == (250, (4, 4, 4))
    assert told[-1] == (250, 250)
    assert [done for done, _ in told] == sorted(done for done, _ in told)
    np.testing.assert_array_equal(latents.labels, digits.labels)
    pixels = digits.load().pixels.astype(np.float64) / 127.5 - 1
    for flip in (False, True):
        shown = pixels[..., ::-1].copy() if flip else pixels
        direct = autoencoder.encode(torch.from_numpy(shown).float())
        rows = read_all(latents, flip)
        assert rows.dtype == np.float16
        np.testing.assert_allclose(rows, direct, rtol=1e-3, atol=1e-4)
    assert not np.array_equal(read_all(latents, False), read_all(latents, True))


def test_with_pixels_rows_are_exact_to_half_precision(digits: Dataset, tmp_path: Path):
    autoencoder = Autoencoder(1, 1, 1)
    encode(digits, autoencoder, tmp_path, flip=False)
    direct = (digits.load().pixels.astype(np.float32) / np.float32(127.5) - 1).astype(np.float16)
    np.testing.assert_array_equal(read_all(opened(digits, autoencoder, tmp_path)), direct)
    assert not list(tmp_path.glob("*.flipped.npy"))


def test_rows_read_at_random_across_shards_are_the_same_as_in_order(digits: Dataset, tmp_path: Path):
    autoencoder = Autoencoder(1, 1, 1)
    encode(digits, autoencoder, tmp_path, flip=True)
    latents = opened(digits, autoencoder, tmp_path, flip=True)
    assert len(list(tmp_path.glob("*.moments.npy"))) == 3
    random = np.random.default_rng(0)
    indices, flips = random.integers(0, 250, 400), random.random(400) < 0.5
    indices[:6] = [0, 99, 100, 199, 200, 249]
    straight, mirrored = read_all(latents), read_all(latents, True)
    expected = np.where(flips[:, None, None, None], mirrored[indices], straight[indices])
    np.testing.assert_array_equal(latents.read(indices, flips), expected)
    np.testing.assert_array_equal(mirrored, straight[..., ::-1])
    assert latents.read(np.empty(0, np.int64), np.empty(0, bool)).shape == (0, 1, 8, 8)


def test_unreadable_images_are_left_out_named_and_their_labels_go_with_them(tmp_path: Path):
    broken = (3, 120, 229)
    dataset = photos(tmp_path / "photos", broken)
    autoencoder = Autoencoder(3, 3, 1)
    skipped = encode(dataset, autoencoder, tmp_path / "cache", flip=False)
    assert [line.split(":")[0] for line in skipped] == ["cat/003.png", "cat/120.png", "dog/229.png"]
    latents = opened(dataset, autoencoder, tmp_path / "cache")
    kept = np.setdiff1d(np.arange(230), broken)
    np.testing.assert_array_equal(latents.labels, (kept >= 150).astype(np.int64))
    pixels, indices = dataset.read(kept)
    np.testing.assert_array_equal(indices, kept)
    np.testing.assert_allclose(read_all(latents), pixels / 127.5 - 1, atol=1e-3)


def test_left_out_images_are_told_again_when_resumed_and_when_complete(tmp_path: Path):
    photos(tmp_path / "photos", (3, 229))
    config = DataConfig(source="folder", path=str(tmp_path / "photos"))
    with pytest.raises(RuntimeError, match="power cut"):
        encode(open_data(config), Counting(3, last=150), tmp_path / "cache", flip=False, batch=50)
    assert (tmp_path / "cache" / "00000.rows.npy").exists()
    for _ in range(2):
        skipped = encode(open_data(config), Autoencoder(3, 3, 1), tmp_path / "cache", flip=False, batch=50)
        assert [line.split(":")[0] for line in skipped] == ["cat/003.png", "dog/229.png"]


def test_a_shard_of_unreadable_images_only_takes_no_room_and_does_not_shift_the_others(tmp_path: Path):
    dataset = photos(tmp_path / "photos", tuple(range(100, 200)))
    autoencoder = Autoencoder(3, 3, 1)
    assert len(encode(dataset, autoencoder, tmp_path / "cache", flip=True)) == 100
    latents = opened(dataset, autoencoder, tmp_path / "cache", flip=True)
    pixels, _ = dataset.read([*range(100), *range(200, 230)])
    np.testing.assert_allclose(read_all(latents, True), pixels[..., ::-1] / 127.5 - 1, atol=1e-3)


@pytest.fixture
def whole(digits: Dataset, tmp_path: Path, tree: Callable) -> dict[str, str]:
    """What an encoding of the digits leaves that nothing interrupted."""
    encode(digits, Autoencoder(1, 1, 1), tmp_path / "whole", flip=True, batch=40)
    return tree(tmp_path / "whole")


def test_an_interrupted_encoding_goes_on_after_its_last_whole_shard(
    digits: Dataset, tmp_path: Path, tree: Callable, whole: dict[str, str], refuses: Callable
):
    folder = tmp_path / "cache"
    with pytest.raises(RuntimeError, match="power cut"):
        encode(digits, Counting(1, last=2 * SHARD + 60), folder, flip=True, batch=40)  # each image counts twice
    assert sorted(tree(folder)) == ["00000.flipped.npy", "00000.moments.npy", "00000.rows.npy", "manifest.json"]
    refuses(lambda: opened(digits, Autoencoder(1, 1, 1), folder, flip=True), "no finished", "ditlab encode")
    rest = Counting(1)
    encode(digits, rest, folder, flip=True, batch=40)
    assert rest.seen == 2 * 150
    assert tree(folder) == whole
    again = Counting(1)
    encode(digits, again, folder, flip=True, batch=40)
    assert again.seen == 0
    assert tree(folder) == whole


def test_a_shard_without_its_rows_is_not_whole(digits: Dataset, tmp_path: Path, tree: Callable, whole: dict[str, str]):
    folder = tmp_path / "cache"
    with pytest.raises(RuntimeError, match="power cut"):
        encode(digits, Counting(1, last=2 * 2 * SHARD), folder, flip=True, batch=40)
    (folder / "00001.rows.npy").unlink()
    (folder / "00001.moments.npy").write_bytes(b"")
    encode(digits, Autoencoder(1, 1, 1), folder, flip=True, batch=40)
    assert tree(folder) == whole


KILLED = """
import os, signal, sys
from pathlib import Path
from ditlab.data import DataConfig, open_data
from ditlab.encoders import Autoencoder, cache, encode

cache.SHARD = 100
class Killed(Autoencoder):
    seen = 0
    def encode(self, pixels):
        self.seen += len(pixels)
        if self.seen > 260:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().encode(pixels)

encode(open_data(DataConfig(source="digits", limit=250)), Killed(1, 1, 1), Path(sys.argv[1]), flip=True, batch=40)
"""


def test_an_encoding_killed_in_its_second_shard_ends_byte_for_byte_as_one_that_was_not(
    digits: Dataset,
    tmp_path: Path,
    tree: Callable,
    whole: dict[str, str],
):
    folder = tmp_path / "cache"
    killed = Forked(folder, script=KILLED).wait()
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert "00000.rows.npy" in tree(folder)
    assert "00001.rows.npy" not in tree(folder)
    rest = Counting(1)
    encode(digits, rest, folder, flip=True, batch=40)
    assert rest.seen == 2 * 150
    assert tree(folder) == whole


def other_data(folder: Path) -> tuple[Dataset, Autoencoder, bool]:
    return open_data(DataConfig(source="digits", limit=240)), Autoencoder(1, 1, 1), False


def other_preprocessing(folder: Path) -> tuple[Dataset, Autoencoder, bool]:
    return open_data(DataConfig(source="digits", limit=250, size=(16,))), Autoencoder(1, 1, 1), False


def other_flip(folder: Path) -> tuple[Dataset, Autoencoder, bool]:
    return open_data(DIGITS), Autoencoder(1, 1, 1), True


@pytest.mark.parametrize(
    ("other", "words"),
    [(other_data, "250 images"), (other_preprocessing, "1x16x16"), (other_flip, "data.flip False")],
)
@pytest.mark.parametrize("finished", [True, False])
def test_a_cache_is_refused_for_other_things_than_it_was_made_of(
    digits: Dataset, tmp_path: Path, tree: Callable, refuses: Callable, other: Callable, words: str, finished: bool
):
    folder = tmp_path / "cache"
    if finished:
        encode(digits, Autoencoder(1, 1, 1), folder, flip=False)
    else:
        with pytest.raises(RuntimeError, match="power cut"):
            encode(digits, Counting(1, last=150), folder, flip=False, batch=50)
    before = tree(folder)
    dataset, autoencoder, flip = other(tmp_path)
    refuses(lambda: encode(dataset, autoencoder, folder, flip=flip), str(folder), words, "--latents")
    if finished:
        refuses(lambda: opened(dataset, autoencoder, folder, flip), str(folder), words, "--latents")
    assert tree(folder) == before


def test_a_cache_of_another_autoencoder_is_refused_and_one_of_other_statistics_is_not(
    digits: Dataset, kl: Callable, tmp_path: Path, tree: Callable, refuses: Callable
):
    folder = tmp_path / "cache"
    encode(digits, kl(seed=0), folder, flip=False)
    before = tree(folder)
    for other in (kl(seed=1), Autoencoder(1, 1, 1)):
        refuses(lambda other=other: encode(digits, other, folder, flip=False), "another autoencoder", "--latents")
        refuses(lambda other=other: opened(digits, other, folder), "another autoencoder", "--latents")
    same = kl(seed=0)
    same.set_statistics(torch.ones(2), torch.ones(2))
    record.save(same, tmp_path / "autoencoder")
    assert len(opened(digits, record.load(tmp_path / "autoencoder"), folder)) == 250
    assert tree(folder) == before


def test_a_missing_cache_says_how_to_make_one(digits: Dataset, tmp_path: Path, refuses: Callable):
    refuses(lambda: opened(digits, Autoencoder(1, 1, 1), tmp_path), "no finished", "ditlab encode")


@pytest.mark.parametrize("kind", ["moments", "flipped", "rows"])
@pytest.mark.parametrize("damage", ["missing", "empty", "truncated", "garbage"])
def test_a_missing_or_damaged_shard_is_refused(
    digits: Dataset, tmp_path: Path, refuses: Callable, kind: str, damage: str
):
    autoencoder = Autoencoder(1, 1, 1)
    encode(digits, autoencoder, tmp_path, flip=True)
    path = tmp_path / f"00000.{kind}.npy"
    if damage == "missing":
        path.unlink()
    else:
        content = path.read_bytes()
        path.write_bytes({"empty": b"", "truncated": content[:-1], "garbage": b"x" * len(content)}[damage])
    refuses(lambda: opened(digits, autoencoder, tmp_path, flip=True), str(tmp_path), "damaged", "encode again")


@pytest.mark.parametrize("flipped", [False, True])
def test_a_flipped_byte_is_found_when_its_row_is_read_and_the_shard_can_be_made_anew(
    digits: Dataset, tmp_path: Path, refuses: Callable, tree: Callable, flipped: bool
):
    autoencoder = Autoencoder(1, 1, 1)
    encode(digits, autoencoder, tmp_path, flip=True)
    before = tree(tmp_path)
    path = tmp_path / f"00001.{'flipped' if flipped else 'moments'}.npy"
    content = bytearray(path.read_bytes())
    content[-64 * 2 * 3 - 1] ^= 4  # the last byte of the fourth row from the end, 64 numbers of two bytes a row
    path.write_bytes(content)
    cache = opened(digits, autoencoder, tmp_path, flip=True)
    rows = np.arange(SHARD, min(2 * SHARD, len(digits)))
    others, bad = np.delete(rows, -4), rows[-4:-3]
    cache.read(others, np.full(len(others), flipped))
    cache.read(rows, np.full(len(rows), not flipped))
    line = refuses(lambda: cache.read(bad, np.full(1, flipped)), str(path), f"row {len(rows) - 4} has changed")
    assert "delete 00001.rows.npy" in line
    (tmp_path / "00001.rows.npy").unlink()
    encode(digits, autoencoder, tmp_path, flip=True)
    assert tree(tmp_path) == before


@pytest.mark.parametrize("change", [lambda text: "", lambda text: text[: len(text) // 2], lambda text: "[1]"])
def test_a_damaged_manifest_is_refused_and_left(digits: Dataset, tmp_path: Path, refuses: Callable, change: Callable):
    autoencoder = Autoencoder(1, 1, 1)
    encode(digits, autoencoder, tmp_path, flip=False)
    path = tmp_path / "manifest.json"
    path.write_text(change(path.read_text()))
    damaged = path.read_text()
    refuses(lambda: opened(digits, autoencoder, tmp_path), str(path), "cannot be read")
    refuses(lambda: encode(digits, autoencoder, tmp_path, flip=False), str(path), "cannot be read")
    assert path.read_text() == damaged


@pytest.mark.parametrize("field", ["data", "autoencoder", "flip", "rows", "complete", "left_out"])
def test_a_manifest_without_a_field_never_ends_in_a_traceback(
    digits: Dataset, tmp_path: Path, refuses: Callable, field: str
):
    autoencoder = Autoencoder(1, 1, 1)
    encode(digits, autoencoder, tmp_path, flip=False)
    path = tmp_path / "manifest.json"
    manifest: dict[str, Any] = json.loads(path.read_text())
    del manifest[field]
    path.write_text(json.dumps(manifest))
    if field == "left_out":
        assert len(opened(digits, autoencoder, tmp_path)) == 250
        assert encode(digits, autoencoder, tmp_path, flip=False) == ()
    else:
        refuses(lambda: opened(digits, autoencoder, tmp_path), str(tmp_path))


def test_an_encoding_that_finds_no_room_is_one_line_and_goes_on_later(
    digits: Dataset, tmp_path: Path, tree: Callable, whole: dict[str, str], refuses: Callable
):
    folder = tmp_path / "cache"
    with pytest.raises(RuntimeError, match="power cut"):
        encode(digits, Counting(1, last=2 * SHARD + 60), folder, flip=True, batch=40)
    blocked = folder / "00001.moments.npy"
    blocked.mkdir()  # a place that cannot be written, for root too
    refuses(lambda: encode(digits, Autoencoder(1, 1, 1), folder, flip=True, batch=40), str(blocked), "cannot write")
    blocked.rmdir()
    encode(digits, Autoencoder(1, 1, 1), folder, flip=True, batch=40)
    assert tree(folder) == whole


def test_rows_files_hold_image_label_and_checksums_and_the_manifest_vouches_for_them(tmp_path: Path):
    dataset = photos(tmp_path / "photos", (3, 120))
    for flip in (False, True):
        folder = tmp_path / f"cache{flip}"
        encode(dataset, Autoencoder(3, 3, 1), folder, flip=flip)
        manifest = json.loads((folder / "manifest.json").read_text())
        names = [f"0000{shard}.rows.npy" for shard in range(3)]
        assert list(manifest["rows"]) == names
        rows = [np.load(folder / name) for name in names]
        content = [(folder / name).read_bytes() for name in names]
        assert list(manifest["rows"].values()) == [
            [len(table), binascii.crc32(file)] for table, file in zip(rows, content, strict=True)
        ]
        table = np.concatenate(rows)
        images = np.setdiff1d(np.arange(230), (3, 120))
        np.testing.assert_array_equal(table[:, 0], images)
        np.testing.assert_array_equal(table[:, 1], images >= 150)
        for column, kind in ((2, "moments"), (3, "flipped"))[: 1 + flip]:
            moments = np.concatenate([np.load(folder / name.replace("rows", kind)) for name in names])
            assert table[:, column].tolist() == [binascii.crc32(row.tobytes()) for row in moments]
        assert flip or not table[:, 3].any()


@pytest.mark.parametrize("kind", ["moments", "flipped", "rows"])
def test_no_flipped_bit_of_any_file_gives_other_numbers_or_a_traceback(
    digits: Dataset, tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(cache, "SHARD", 8)
    few = open_data(DataConfig(source="digits", limit=12))
    autoencoder = Autoencoder(1, 1, 1)
    encode(few, autoencoder, tmp_path, flip=True)
    latents = opened(few, autoencoder, tmp_path, flip=True)
    right = [read_all(latents, flip) for flip in (False, True)], latents.labels
    path = tmp_path / f"00000.{kind}.npy"
    content = path.read_bytes()
    refusals: list[str] = []
    for position in [*range(128), *range(128, len(content), 37)]:  # the whole header, and some of the numbers
        for bit in range(8):
            changed = bytearray(content)
            changed[position] ^= 1 << bit
            path.write_bytes(changed)
            try:
                latents = opened(few, autoencoder, tmp_path, flip=True)
                read = [read_all(latents, flip) for flip in (False, True)], latents.labels
            except UserError as error:
                refusals.append(str(error))
            else:
                np.testing.assert_array_equal(read[0], right[0])
                np.testing.assert_array_equal(read[1], right[1])
    assert len(refusals) > 8 * 80
    assert all(f"{path} are damaged" in line and "\n" not in line for line in refusals)


@pytest.mark.parametrize("kind", ["moments", "flipped", "rows"])
@pytest.mark.parametrize("damage", ["missing", "cut", "label"])
def test_encoding_again_makes_shards_anew_that_are_not_whole(
    digits: Dataset, tmp_path: Path, tree: Callable, whole: dict[str, str], kind: str, damage: str
):
    path = tmp_path / "whole" / f"00001.{kind}.npy"
    content = path.read_bytes()
    path.unlink()
    if damage == "cut":
        path.write_bytes(content[:-1])
    elif damage == "label":
        changed = bytearray(content)
        changed[128 + 8] ^= 3  # of rows, the first label: nothing but the manifest tells
        path.write_bytes(changed)
    again = Counting(1)
    encode(digits, again, tmp_path / "whole", flip=True, batch=40)
    if damage == "label" and kind != "rows":
        assert again.seen == 0  # a changed number is found when it is read
        path.write_bytes(content)
    else:
        assert again.seen == 2 * SHARD
    assert tree(tmp_path / "whole") == whole


def test_shards_that_no_manifest_says_anything_of_are_not_taken(
    digits: Dataset, tmp_path: Path, tree: Callable, whole: dict[str, str]
):
    class Darker(Autoencoder):
        def encode(self, pixels: torch.Tensor) -> torch.Tensor:
            return pixels / 2

    encode(digits, Darker(1, 1, 1), tmp_path / "cache", flip=True, batch=40)
    (tmp_path / "cache" / "manifest.json").unlink()
    again = Counting(1)
    encode(digits, again, tmp_path / "cache", flip=True, batch=40)
    assert again.seen == 2 * 250
    assert tree(tmp_path / "cache") == whole


def test_a_cache_of_the_first_version_is_one_line_and_encoding_makes_it_anew(
    digits: Dataset, tmp_path: Path, tree: Callable, whole: dict[str, str], refuses: Callable
):
    folder = tmp_path / "whole"
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["shards"] = [count for count, _ in manifest.pop("rows").values()]
    (folder / "manifest.json").write_text(json.dumps(manifest))
    for path in folder.glob("*.rows.npy"):
        np.save(path, np.load(path)[:, :2])
    refuses(lambda: opened(digits, Autoencoder(1, 1, 1), folder, flip=True), str(folder), "encode again")
    encode(digits, Autoencoder(1, 1, 1), folder, flip=True, batch=40)
    assert tree(folder) == whole


def test_opening_checks_only_the_rows_files_and_reading_each_row_it_gives_once(
    digits: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    autoencoder = Autoencoder(1, 1, 1)
    encode(digits, autoencoder, tmp_path, flip=True)
    checked: list[int] = []

    def counting(content: Any) -> int:
        checked.append(memoryview(content).nbytes)
        return binascii.crc32(content)

    monkeypatch.setattr(shards.zlib, "crc32", counting)
    latents = opened(digits, autoencoder, tmp_path, flip=True)
    assert sum(checked) == sum(path.stat().st_size for path in tmp_path.glob("*.rows.npy"))
    checked.clear()
    random = np.random.default_rng(0)
    latents.read(random.integers(0, 250, 64), random.random(64) < 0.5)
    assert checked == [64 * 2] * 64  # 8x8 numbers of two bytes, no more than is copied
