"""Caches behind URLs, on filesystems of fsspec that need no network."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest
import torch
from forked import Forked
from fsspec.implementations.memory import MemoryFileSystem

from ditlab.data import DataConfig, Dataset, open_data
from ditlab.encoders import Autoencoder, LatentCache, cache, cache_key, encode, encode_remote
from ditlab.errors import UserError

SHARD = 100
DIGITS = DataConfig(source="digits", limit=250)  # three shards, the last one half full
FILES = ["manifest.json", *(f"0000{shard}.{kind}.npy" for shard in range(3) for kind in ("flipped", "moments", "rows"))]


@pytest.fixture
def digits(monkeypatch: pytest.MonkeyPatch) -> Dataset:
    monkeypatch.setattr(cache, "SHARD", SHARD)
    return open_data(DIGITS)


class Flaky(MemoryFileSystem):
    """Files in memory behind a bad connection: some of what it is asked goes wrong."""

    protocol = "flaky"
    store: dict[str, Any] = {}  # noqa: RUF012 - as its parent has it
    pseudo_dirs = [""]  # noqa: RUF012
    wrong: Callable[[str, str], bytes | None] = staticmethod(lambda what, path: None)
    asked: list[tuple[str, str]] = []  # noqa: RUF012

    @classmethod
    def _strip_protocol(cls, path: Any) -> Any:
        return super()._strip_protocol(path.replace("flaky://", "memory://") if isinstance(path, str) else path)

    def _ask(self, what: str, path: str) -> bytes | None:
        self.asked.append((what, path.rsplit("/", 1)[1]))
        return Flaky.wrong(what, path.rsplit("/", 1)[1])

    def cat_file(self, path: str, *arguments: Any, **more: Any) -> bytes:
        wrong = self._ask("fetch", path)
        return super().cat_file(path, *arguments, **more) if wrong is None else wrong

    def get_file(self, rpath: str, lpath: Any = None, *arguments: Any, **more: Any) -> None:
        wrong = self._ask("fetch", rpath)
        super().get_file(rpath, lpath, *arguments, **more)
        if wrong is not None:
            Path(lpath).write_bytes(wrong)

    def put_file(self, lpath: Any, rpath: str, *arguments: Any, **more: Any) -> None:
        self._ask("send", rpath)
        super().put_file(lpath, rpath, *arguments, **more)

    def pipe_file(self, path: str, *arguments: Any, **more: Any) -> None:
        self._ask("send", path)
        super().pipe_file(path, *arguments, **more)


fsspec.register_implementation("flaky", Flaky, clobber=True)


@pytest.fixture(autouse=True)
def empty_memory() -> Iterator[None]:
    yield
    for files in (MemoryFileSystem, Flaky):
        files.store.clear()
        files.pseudo_dirs[:] = [""]
    Flaky.wrong = staticmethod(lambda what, path: None)
    Flaky.asked.clear()


@pytest.fixture(params=["memory", "file"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return "memory://bucket/latents" if request.param == "memory" else f"file://{tmp_path}/bucket/latents"


def at(url: str) -> dict[str, bytes]:
    """Every file at a URL, by name."""
    files, root = fsspec.url_to_fs(url)
    return {path.rsplit("/", 1)[1]: files.cat_file(path) for path in files.find(root)}


def put(url: str, content: dict[str, bytes]) -> None:
    """Make a URL hold these files and no others."""
    files, root = fsspec.url_to_fs(url)
    if files.exists(root):
        files.rm(root, recursive=True)
    files.makedirs(root, exist_ok=True)
    for name, value in content.items():
        files.pipe_file(f"{root}/{name}", value)


def here(folder: Path) -> dict[str, bytes]:
    """Every file of a local copy that the URL has as well: not the note of its URL, the index and the held-out images."""
    own = ("url", "index.json", "held-out.npz")
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name not in own}


class Counting(Autoencoder):
    """The pixel identity, which counts the images it encodes and can be told to give up before the n-th."""

    def __init__(self, last: int = 10**9, before: Callable[[], object] = lambda: None):
        super().__init__(1, 1, 1)
        self.seen, self.last, self.before = 0, last, before

    def encode(self, pixels: torch.Tensor) -> torch.Tensor:
        if self.seen >= self.last:
            self.before()
            raise RuntimeError("power cut")
        self.seen += len(pixels)
        return super().encode(pixels)


def run(url: str, dataset: Dataset, folder: Path, autoencoder: Autoencoder | None = None, **more: Any) -> int:
    """Images encoded by one start, each mirrored one too."""
    counting = autoencoder or Counting()
    encode_remote(url, dataset, counting, folder, flip=True, batch=40, **more)
    return getattr(counting, "seen", -1)


@pytest.fixture
def whole(digits: Dataset, tmp_path: Path) -> dict[str, bytes]:
    """The files of a cache that knows of no URL."""
    encode(digits, Autoencoder(1, 1, 1), tmp_path / "whole", flip=True, batch=40)
    return here(tmp_path / "whole")


def unfinished(whole: dict[str, bytes]) -> bytes:
    """The manifest of the cache before it was complete."""
    manifest = json.loads(whole["manifest.json"]) | {"complete": False}
    del manifest["rows"], manifest["left_out"]
    return json.dumps(manifest).encode()


def test_what_is_sent_is_the_plain_cache_and_another_machine_fetches_it_without_encoding(
    url: str, digits: Dataset, tmp_path: Path, whole: dict[str, bytes]
):
    told: list[tuple[str, int, int]] = []
    assert run(url, digits, tmp_path / "a", progress=lambda *now: told.append(now)) == 2 * 250
    assert sorted(whole) == sorted(FILES)
    assert at(url) == whole
    assert here(tmp_path / "a") == whole
    assert [now for now in told if now[0] == "sending"] == [("sending", 1, 3), ("sending", 2, 3), ("sending", 3, 3)]
    assert ("encoding", 250, 250) in told

    told.clear()
    assert run(url, digits, tmp_path / "b", progress=lambda *now: told.append(now)) == 0
    assert told == [("fetching", 1, 3), ("fetching", 2, 3), ("fetching", 3, 3)]
    assert here(tmp_path / "b") == whole
    assert at(url) == whole
    autoencoder = Autoencoder(1, 1, 1)
    latents = LatentCache(tmp_path / "b", cache_key(digits, autoencoder, True))
    pixels, _ = digits.read(np.arange(250))
    rows = latents.read(np.arange(250), np.ones(250, bool))
    np.testing.assert_allclose(rows, pixels[..., ::-1] / 127.5 - 1, atol=1e-3)


def test_a_whole_local_copy_needs_no_url_any_more(digits: Dataset, tmp_path: Path, whole: dict[str, bytes]):
    url = "flaky://bucket/latents"
    run(url, digits, tmp_path / "a")
    Flaky.asked.clear()
    assert run(url, digits, tmp_path / "a") == 0
    assert Flaky.asked == []
    assert here(tmp_path / "a") == whole
    assert run("memory://elsewhere", digits, tmp_path / "a") == 0  # a copy of one is not a copy of the other
    assert at("memory://elsewhere") == whole


def test_a_cache_made_without_a_url_is_sent_as_it_is(
    url: str, digits: Dataset, tmp_path: Path, whole: dict[str, bytes]
):
    assert run(url, digits, tmp_path / "whole") == 0
    assert at(url) == whole


def test_of_a_local_copy_only_what_is_missing_is_fetched(digits: Dataset, tmp_path: Path, whole: dict[str, bytes]):
    url, folder = "flaky://bucket/latents", tmp_path / "a"
    run(url, digits, folder)
    Flaky.asked.clear()
    (folder / "00001.flipped.npy").unlink()
    (folder / "00002.rows.npy").unlink()
    assert run(url, digits, folder) == 0
    assert here(folder) == whole
    moments = [name for what, name in Flaky.asked if what == "fetch" and "rows" not in name and name != "manifest.json"]
    assert moments == ["00001.flipped.npy"]
    assert not [name for what, name in Flaky.asked if what == "send"]


def test_images_left_out_are_told_by_those_who_only_fetch(url: str, tmp_path: Path, pictures: Callable):
    photos = pictures(tmp_path / "photos", ("cat", "dog"), 60, 8, 8)
    broken = photos / "dog" / "7.png"
    broken.write_bytes(broken.read_bytes()[:60])
    config = DataConfig(source="folder", path=str(photos))
    for name in ("a", "b", "b"):
        skipped = encode_remote(url, open_data(config), Autoencoder(3, 3, 1), tmp_path / name, flip=False)
        assert [line.split(":")[0] for line in skipped] == ["dog/7.png"]


def arrived(url: str, name: str) -> Callable[[], None]:
    """Waits until a file is at a URL."""

    def wait() -> None:
        end = time.monotonic() + 60
        while name not in at(url):
            assert time.monotonic() < end
            time.sleep(0.01)

    return wait


@pytest.mark.parametrize("same", [True, False], ids=["same-machine", "another-machine"])
def test_an_interrupted_encoding_goes_on_from_either_side(
    url: str, digits: Dataset, tmp_path: Path, whole: dict[str, bytes], same: bool
):
    cut = Counting(last=2 * SHARD + 60, before=arrived(url, "00000.rows.npy"))
    with pytest.raises(RuntimeError, match="power cut"):
        run(url, digits, tmp_path / "a", cut)
    there = at(url)
    assert sorted(there) == ["00000.flipped.npy", "00000.moments.npy", "00000.rows.npy", "manifest.json"]
    assert json.loads(there["manifest.json"])["complete"] is False
    assert run(url, digits, tmp_path / ("a" if same else "b")) == 2 * 150
    assert at(url) == whole
    assert here(tmp_path / ("a" if same else "b")) == whole


@pytest.mark.parametrize(
    "half",
    [
        {"00001.rows.npy": None},
        {"00001.rows.npy": None, "00001.moments.npy": b"half", ".00001.rows.npy.part": b"ha"},
        {"00001.rows.npy": None, "00001.moments.npy": None, "00001.flipped.npy": None},
        {"00001.moments.npy": None},
    ],
    ids=["no-rows", "half-moments", "nothing", "no-moments"],
)
def test_a_shard_that_was_half_sent_is_sent_again(
    url: str, digits: Dataset, tmp_path: Path, whole: dict[str, bytes], half: dict[str, bytes | None]
):
    there = {name: half.get(name, value) for name, value in ({**whole, **half}).items()}
    put(url, {name: value for name, value in there.items() if value is not None} | {"manifest.json": unfinished(whole)})
    assert run(url, digits, tmp_path / "b") == 2 * 100
    assert {name: value for name, value in at(url).items() if not name.startswith(".")} == whole
    assert here(tmp_path / "b") == whole


KILLS = """
import os, signal, sys
from pathlib import Path
from ditlab.data import DataConfig, open_data
from ditlab.encoders import Autoencoder, cache, encode, encode_remote

cache.SHARD = 60
base, fetching = Path(sys.argv[1]), sys.argv[2] == "fetching"
digits = open_data(DataConfig(source="digits", limit=100))
encode(digits, Autoencoder(1, 1, 1), base / "whole", flip=True)
wanted = {path.name: path.read_bytes() for path in (base / "whole").iterdir()}

def files(folder):
    return {p.name: p.read_bytes() for p in folder.iterdir() if p.name != "url" and not p.name.endswith(".part")}

def start(url, local, last):
    child = os.fork()
    if not child:
        left = [last]
        def count(event, arguments):
            if event in ("os.rename", "shutil.copyfile"):
                left[0] -= 1
                if left[0] == 0:
                    os.kill(os.getpid(), signal.SIGKILL)
        sys.addaudithook(count)
        try:
            encode_remote(f"file://{url}", digits, Autoencoder(1, 1, 1), local, flip=True)
        except BaseException as error:
            print(repr(error), flush=True)
            os._exit(1)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])

killed = 0
while True:
    url, local = base / f"url{killed}", base / f"local{killed}"
    if fetching:
        assert start(url, base / f"first{killed}", 0) == 0
    code = start(url, local, killed + 1)
    if code == 0:
        break
    assert code == -signal.SIGKILL, code
    after = local if killed % 2 or fetching else base / f"other{killed}"
    assert start(url, after, 0) == 0
    assert files(after) == wanted, (killed, sorted(files(after)))
    assert files(url) == wanted, (killed, sorted(files(url)))
    killed += 1
print(killed)
"""


@pytest.mark.parametrize(("what", "moments"), [("sending", 15), ("fetching", 8)])
def test_killed_between_any_two_files_of_either_side_it_ends_as_one_that_was_not(
    tmp_path: Path, what: str, moments: int
):
    drill = Forked(tmp_path, what, script=KILLS).wait()
    assert drill.returncode == 0, drill.stdout + drill.stderr
    assert int(drill.stdout) >= moments


def other_images() -> tuple[Dataset, Autoencoder, bool]:
    return open_data(DataConfig(source="digits", limit=240)), Autoencoder(1, 1, 1), True


def no_flips() -> tuple[Dataset, Autoencoder, bool]:
    return open_data(DIGITS), Autoencoder(1, 1, 1), False


@pytest.mark.parametrize("finished", [True, False])
@pytest.mark.parametrize(("other", "words"), [(other_images, "250 images"), (no_flips, "data.flip True")])
def test_a_url_with_a_cache_of_other_things_is_refused_and_nothing_changes(
    url: str, digits: Dataset, tmp_path: Path, whole: dict[str, bytes], refuses: Callable,
    other: Callable, words: str, finished: bool,
):  # fmt: skip
    there = whole if finished else whole | {"manifest.json": unfinished(whole)}
    put(url, there)
    dataset, autoencoder, flip = other()
    call = lambda: encode_remote(url, dataset, autoencoder, tmp_path / "b", flip=flip)  # noqa: E731
    refuses(call, url, words, "--latents")
    assert at(url) == there
    assert not (tmp_path / "b").exists()


def test_another_autoencoders_cache_at_a_url_is_refused(
    url: str, digits: Dataset, kl: Callable, tmp_path: Path, refuses: Callable
):
    encode_remote(url, digits, kl(seed=0), tmp_path / "a", flip=False)
    there = at(url)
    refuses(lambda: encode_remote(url, digits, kl(seed=1), tmp_path / "b", flip=False), url, "another autoencoder")
    assert at(url) == there


def test_a_local_folder_with_a_cache_of_other_things_is_refused_before_anything_is_sent(
    url: str, digits: Dataset, tmp_path: Path, whole: dict[str, bytes], refuses: Callable
):
    dataset, autoencoder, flip = other_images()
    refuses(lambda: encode_remote(url, dataset, autoencoder, tmp_path / "whole", flip=flip), str(tmp_path / "whole"))
    files, root = fsspec.url_to_fs(url)
    assert not files.exists(root)
    assert here(tmp_path / "whole") == whole


def test_latents_at_a_url_that_nothing_says_of_what_they_are_stay(
    url: str, digits: Dataset, tmp_path: Path, whole: dict[str, bytes], refuses: Callable
):
    there = {name: value for name, value in whole.items() if name != "manifest.json"}
    put(url, there)
    refuses(lambda: run(url, digits, tmp_path / "b"), url, "without a manifest.json")
    assert at(url) == there


def test_where_both_sides_have_a_shard_the_urls_is_the_one(
    url: str, digits: Dataset, kl: Callable, tmp_path: Path, whole: dict[str, bytes]
):
    # Another processor: the same autoencoder, whose numbers differ in their last bits.
    class Elsewhere(Autoencoder):
        def encode(self, pixels: torch.Tensor) -> torch.Tensor:
            return pixels * (1 + 2**-9)

    for finished in (True, False):
        put(url, whole if finished else whole | {"manifest.json": unfinished(whole)})
        folder = tmp_path / f"local{finished}"
        encode(digits, Elsewhere(1, 1, 1), folder, flip=True, batch=40)
        assert here(folder) != whole
        assert run(url, digits, folder) == 0
        assert here(folder) == whole
        assert at(url) == whole


def damaged(content: bytes, how: str) -> bytes:
    changed = bytearray(content)
    changed[-3] ^= 16
    return {"bit": bytes(changed), "cut": content[:-1], "empty": b"", "longer": content + b"x"}[how]


@pytest.mark.parametrize("kind", ["moments", "flipped", "rows"])
@pytest.mark.parametrize("how", ["bit", "cut", "empty", "longer"])
def test_a_damaged_file_at_a_url_is_named_never_kept_and_can_be_made_anew(
    digits: Dataset, tmp_path: Path, whole: dict[str, bytes], refuses: Callable, kind: str, how: str
):
    url, name = "flaky://bucket/latents", f"00001.{kind}.npy"
    there = whole | {name: damaged(whole[name], how)}
    put(url, there)
    Flaky.asked.clear()
    line = refuses(lambda: run(url, digits, tmp_path / "b"), f"{url}/{name} is damaged", "encode again")
    assert "delete 00001.rows.npy there" in line
    assert Flaky.asked.count(("fetch", name)) == 2
    assert at(url) == there
    kept = here(tmp_path / "b")
    assert "00001.rows.npy" not in kept
    assert all(whole[file] == value for file, value in kept.items() if file != "manifest.json"), sorted(kept)

    put(url, {file: value for file, value in there.items() if file != "00001.rows.npy"})
    assert run(url, digits, tmp_path / "b") == 2 * 100
    assert at(url) == whole
    assert here(tmp_path / "b") == whole


def test_a_download_that_went_wrong_once_is_fetched_again(
    digits: Dataset, tmp_path: Path, whole: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
):
    url = "flaky://bucket/latents"
    put(url, whole)
    Flaky.asked.clear()
    spoilt: set[str] = set()

    def first_time(what: str, name: str) -> bytes | None:
        if what != "fetch" or name in spoilt or name == "manifest.json":
            return None
        spoilt.add(name)
        return whole[name][:-7]

    monkeypatch.setattr(Flaky, "wrong", staticmethod(first_time))
    assert run(url, digits, tmp_path / "b") == 0
    assert here(tmp_path / "b") == whole
    assert sorted(spoilt) == sorted(set(FILES) - {"manifest.json"})
    assert all(Flaky.asked.count(("fetch", name)) == 2 for name in spoilt)


def test_a_damaged_manifest_at_a_url_is_one_line_and_stays(
    url: str, digits: Dataset, tmp_path: Path, whole: dict[str, bytes], refuses: Callable
):
    for content in (b"", whole["manifest.json"][:-9], b"[1]", b"\xff\xfe"):
        there = whole | {"manifest.json": content}
        put(url, there)
        refuses(lambda: run(url, digits, tmp_path / "b"), f"{url}/manifest.json", "cannot be read")
        assert at(url) == there


class ServiceError(Exception):
    """As packages of cloud storage raise them: no OSError."""


@pytest.mark.parametrize("error", [ConnectionResetError("the line is dead"), TimeoutError(), ServiceError("503\nbusy")])
@pytest.mark.parametrize("what", ["fetch", "send"])
def test_a_lost_connection_is_one_line_at_any_moment_and_the_same_command_goes_on(
    digits: Dataset, tmp_path: Path, whole: dict[str, bytes], refuses: Callable, monkeypatch: pytest.MonkeyPatch,
    error: Exception, what: str,
):  # fmt: skip
    url, left = "flaky://bucket/latents", 0

    def dead(asked: str, name: str) -> None:
        nonlocal left
        left -= asked == what
        if left < 0 and asked == what:
            raise error

    monkeypatch.setattr(Flaky, "wrong", staticmethod(dead))
    moments = 0
    while True:
        left = 100
        put(url, whole if what == "fetch" else {})
        folder, left = tmp_path / f"{what}{moments}", moments
        try:
            run(url, digits, folder)
            break
        except UserError as caught:
            line = str(caught)
        assert line.startswith(f"cannot {what} "), line
        assert url in line
        assert (" ".join(str(error).split()) or "TimeoutError") in line
        assert "\n" not in line
        left = 100
        run(url, digits, folder)
        assert at(url) == whole
        assert here(folder) == whole
        moments += 1
    assert moments == 11  # each file once, and the manifest at the beginning and at the end


def test_a_local_disk_that_has_no_room_is_one_line(digits: Dataset, tmp_path: Path, whole: dict[str, bytes], refuses):
    url, folder = "memory://bucket/latents", tmp_path / "b"
    put(url, whole)
    blocked = folder / "00001.moments.npy"
    blocked.mkdir(parents=True)  # a place that cannot be written, for root too
    refuses(lambda: run(url, digits, folder), f"cannot write {blocked}")
    blocked.rmdir()
    assert run(url, digits, folder) == 0
    assert here(folder) == whole


def test_an_unknown_protocol_is_one_line_with_the_nearest(digits: Dataset, tmp_path: Path, refuses: Callable):
    refuses(
        lambda: run("memry://x", digits, tmp_path / "a"), "--latents memry://x", "not known", "did you mean 'memory'"
    )
    assert not (tmp_path / "a").exists()


def test_a_protocol_whose_package_is_missing_is_one_line_that_names_it(
    digits: Dataset, tmp_path: Path, refuses: Callable, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setitem(sys.modules, "s3fs", None)
    refuses(lambda: run("s3://bucket/latents", digits, tmp_path / "a"), "--latents s3://bucket/latents", "Install s3fs")
    assert not (tmp_path / "a").exists()


@pytest.fixture
def beside(kl_run: Path) -> list[object]:
    """Flags by which a recipe uses the autoencoder that is there."""
    return ["--autoencoder.path", kl_run.with_name("small-autoencoder")]


def test_a_recipe_trains_from_a_url_what_it_would_train_from_its_own_folder(
    tmp_path: Path, kl_run: Path, kl_recipe: Path, beside: list[object], ditlab: Callable, refused: Callable,
    metrics: Callable,
):  # fmt: skip
    url, made = "memory://bucket/latents", here(kl_run.with_name("small-latents"))
    encoded = ditlab("encode", kl_recipe, *beside, "--latents", url, "--out", tmp_path / "one")
    assert (encoded.code, encoded.err) == (0, ""), encoded
    assert f"in {tmp_path / 'one-latents'}, a copy of {url}" in encoded.out
    assert sorted(at(url)) == sorted(made)
    with torch.enable_grad():
        trained = ditlab("train", kl_recipe, *beside, "--latents", url, "--out", tmp_path / "two")
    assert (trained.code, trained.err) == (0, ""), trained
    assert here(tmp_path / "two-latents") == at(url)
    assert metrics(tmp_path / "two") == metrics(kl_run)
    again = ditlab("train", tmp_path / "two")
    assert (again.code, again.err) == (0, ""), again
    other = ["encode", kl_recipe, *beside, "--data.limit", "500", "--latents", url, "--out", tmp_path / "three"]
    refused(other, url, "other images")
    refused([*other[:-3], "gopher://x", *other[-2:]], "gopher://x", "not known")


def test_a_recipe_in_another_process_takes_its_latents_from_a_url(
    tmp_path: Path, kl_run: Path, kl_recipe: Path, beside: list[object]
):
    url, made = f"file://{tmp_path}/bucket/latents", here(kl_run.with_name("small-latents"))
    put(url, made)
    encoding = Forked("encode", kl_recipe, *beside, "--latents", url, "--out", tmp_path / "run").wait()
    assert (encoding.returncode, encoding.stderr) == (0, "")
    assert f"a copy of {url}" in encoding.stdout
    assert here(tmp_path / "run-latents") == made
    assert at(url) == made
