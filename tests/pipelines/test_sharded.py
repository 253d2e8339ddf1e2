"""Samples written to disk batch by batch: the same bytes from any number of processes, with or without a kill."""

from __future__ import annotations

import json
import signal
import subprocess
import time
import zipfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
from forked import Forked, ranks, together
from PIL import Image

from ditlab.pipelines import sharded, weights_digest, write_samples
from ditlab.runtime import files

SHAPE, BATCH = (22, 8, 12, 3), 5
PIXELS = np.random.default_rng(0).integers(0, 256, SHAPE, np.uint8)
LABELS = np.arange(SHAPE[0]) % 3
NAMES = ("T-shirt/top", "bag", "coat")


class Maker:
    """Returns the batches of PIXELS, counts them, and fails after some."""

    def __init__(self, fails_after: int = 1000, pixels: np.ndarray = PIXELS):
        self.left, self.made, self.pixels = fails_after, [], pixels

    def __call__(self, starts: Sequence[int]) -> Iterator[np.ndarray]:
        for first in starts:
            if len(self.made) == self.left:
                raise KeyboardInterrupt
            self.made.append(first)
            yield self.pixels[first : first + BATCH]


def run(out: Path, make: Maker, settings: dict[str, object] | None = None, **options) -> None:
    pixels = make.pixels
    labels = LABELS[: len(pixels)]
    write_samples(out, make, pixels.shape, BATCH, labels, NAMES, settings or {"seed": 0}, **options)


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_an_archive_has_adms_layout_and_numpys_bytes(tmp_path: Path, channels: int):
    pixels = np.random.default_rng(1).integers(0, 256, (7, 8, 12, channels), np.uint8)
    run(tmp_path / "deep" / "out.npz", Maker(pixels=pixels))
    with np.load(tmp_path / "deep" / "out.npz") as archive:
        assert archive.files == ["arr_0", "arr_1"]
        np.testing.assert_array_equal(archive["arr_0"], pixels)
        np.testing.assert_array_equal(archive["arr_1"], LABELS[:7])
        assert archive["arr_1"].dtype == np.int64
    np.savez(tmp_path / "numpy.npz", pixels, LABELS[:7])
    contents = []
    for path in (tmp_path / "deep" / "out.npz", tmp_path / "numpy.npz"):
        with zipfile.ZipFile(path) as opened:
            assert opened.testzip() is None
            contents.append({name: opened.read(name) for name in opened.namelist()})
    assert contents[0] == contents[1]
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["out.npz"]


@pytest.mark.parametrize(("channels", "mode"), [(1, "L"), (2, "L"), (3, "RGB"), (4, "RGBA")])
def test_a_folder_holds_one_png_per_image_with_its_settings(tmp_path: Path, channels: int, mode: str):
    pixels = np.random.default_rng(1).integers(0, 256, (3, 8, 12, channels), np.uint8)
    write_samples(tmp_path / "out", Maker(pixels=pixels), pixels.shape, BATCH, np.array([1, 0, -1]), NAMES, {"seed": 2})
    names = ["000000-bag.png", "000001-T-shirt_top.png", "000002.png"]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == names
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    for index, name in enumerate(names):
        with Image.open(tmp_path / "out" / name) as picture:
            assert (picture.mode, picture.size) == (mode, (12, 8))
            expected = pixels[index] if channels in (3, 4) else pixels[index, ..., 0]
            np.testing.assert_array_equal(np.asarray(picture), expected)
            assert json.loads(picture.info["ditlab"]) == {"seed": 2, "image": index}


@pytest.mark.parametrize("out", ["out.npz", "out"])
def test_an_interrupted_command_makes_only_the_missing_batches(
    tmp_path: Path, out: str, tree: Callable, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(sharded, "SYNC_SECONDS", -1)
    run(tmp_path / "whole" / out, Maker())
    place, interrupted, resumed, found = tmp_path / "parts" / out, Maker(3), Maker(), []
    with pytest.raises(KeyboardInterrupt):
        run(place, interrupted)
    assert interrupted.made == [0, 5, 10]
    assert place.exists() == (out == "out")
    run(place, resumed, resumed=found.append)
    assert (resumed.made, found) == ([15, 20], [15])
    assert tree(tmp_path / "parts") == tree(tmp_path / "whole")


def test_batches_that_were_not_synced_are_made_again(tmp_path: Path, tree: Callable):
    run(tmp_path / "whole.npz", Maker())
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "out.npz", Maker(3))
    resumed = Maker()
    run(tmp_path / "out.npz", resumed)
    assert resumed.made == [0, 5, 10, 15, 20]
    assert (tmp_path / "out.npz").read_bytes() == (tmp_path / "whole.npz").read_bytes()


def test_other_settings_do_not_resume(tmp_path: Path, refuses: Callable):
    out = tmp_path / "out.npz"
    with pytest.raises(KeyboardInterrupt):
        run(out, Maker(3), {"seed": 0, "weights": "ab"})
    refuses(lambda: run(out, Maker(), {"seed": 1, "weights": "ab"}), "seed 0 and not 1", ".out.npz.unfinished")
    refuses(lambda: run(out, Maker(), {"seed": 0}), "weights 'ab' and not None")
    short = Maker(pixels=PIXELS[:20])
    refuses(lambda: run(out, short, {"seed": 0, "weights": "ab"}), "images [22, 8, 12, 3] and not [20, 8, 12, 3]")
    run(out, Maker(), {"seed": 0, "weights": "ab"})
    run(out, short)  # a finished one is replaced
    with np.load(out) as archive:
        np.testing.assert_array_equal(archive["arr_0"], PIXELS[:20])


def test_two_commands_do_not_write_the_same_output(tmp_path: Path, refuses: Callable):
    with files.locked(tmp_path / ".out.npz.unfinished", "x"):
        refuses(lambda: run(tmp_path / "out.npz", Maker()), "another process", ".out.npz.unfinished")


def test_a_place_that_cannot_be_written_is_one_line(tmp_path: Path, refuses: Callable):
    (tmp_path / "file").write_text("x")
    (tmp_path / "folder.npz").mkdir()
    for out in ("file", "file/a.npz", "folder.npz"):
        refuses(lambda out=out: run(tmp_path / out, Maker()), "cannot write", out.split("/")[0])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "folder.npz"]


FULL = """
import resource, signal, sys
from pathlib import Path
import numpy as np
from ditlab.errors import UserError
from ditlab.pipelines import write_samples

signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
images = np.random.default_rng(1).integers(0, 256, (4, 64, 64, 3), np.uint8)
for limit, name in ((4096, "a.npz"), (4096, "folder"), (resource.RLIM_INFINITY, "a.npz")):
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
    try:
        write_samples(Path(sys.argv[1]) / name, lambda starts: iter([images]), images.shape, 4, np.zeros(4, int), (), {})
    except UserError as error:
        print(error)
"""


def test_a_full_disk_is_found_before_sampling_and_damages_nothing(tmp_path: Path, tree: Callable):
    run(tmp_path / "a.npz", Maker())
    before = tree(tmp_path)
    full = Forked(tmp_path, script=FULL).wait()
    assert full.returncode == 0, full.stderr
    for line, name in zip(full.stdout.splitlines(), ("a.npz", "000000.png"), strict=True):
        assert line.startswith("cannot write")
        assert name in line
        assert "File too large" in line
    after = tree(tmp_path)
    assert after.pop("a.npz") != before.pop("a.npz")  # with the disk no longer full it was written
    assert {name.split("/")[0] for name in after} == {".folder.unfinished"}  # of PNGs, those that fitted would be kept


MEMORY = """
import resource, sys
from pathlib import Path
import numpy as np
from ditlab.pipelines import write_samples

def make(starts):
    for first in starts:
        yield np.full((64, 64, 64, 3), first % 251, np.uint8)

for count in (1280, 5120):
    write_samples(Path(sys.argv[1]) / "a.npz", make, (count, 64, 64, 3), 64, np.zeros(count, int), (), {})
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


def test_memory_does_not_grow_with_the_number_of_images(tmp_path: Path, process: Callable[..., subprocess.Popen[str]]):
    running = process(tmp_path, script=MEMORY)
    output, errors = running.communicate(timeout=120)
    assert running.returncode == 0, errors
    few, many = map(int, output.split())  # KiB; the arrays are of 15 and of 60 MiB
    assert many - few < 8 * 1024
    with np.load(tmp_path / "a.npz") as archive:
        np.testing.assert_array_equal(archive["arr_0"][:, 0, 0, 0], np.arange(5120) // 64 * 64 % 251)


SYNCED = """
import sys
from ditlab.cli.main import main
from ditlab.pipelines import sharded

sharded.SYNC_SECONDS = 0
main(sys.argv[1:])
"""


def test_four_processes_killed_and_resumed_by_two_write_what_one_process_writes(
    tmp_path: Path, make: Callable, ditlab: Callable
):
    make().save(tmp_path / "model")
    command = ["sample", tmp_path / "model", "--count", 3000, "--batch", 16, "--steps", 4, "--no-filmstrip", "--out"]
    out, done = tmp_path / "out.npz", tmp_path / ".out.npz.unfinished" / "done"
    killed = ranks(4, *command, out, script=SYNCED)
    deadline = time.monotonic() + 120
    while not (done.exists() and sum(done.read_bytes()) > 5):
        assert all(process.poll() is None for process in killed), [process.wait() for process in killed]
        assert time.monotonic() < deadline
        time.sleep(0.01)
    for process in killed:
        process.kill()
    assert [process.wait().returncode for process in killed] == [-signal.SIGKILL] * 4
    assert not out.exists()
    finished = np.fromfile(done, np.uint8)
    assert 5 < finished.sum() < len(finished) == 188
    resumed = together(2, *command, out, script=SYNCED)
    assert resumed.returncode == 0, resumed.stderr
    assert f"resumed: {finished.sum() * 16 - 8 * finished[-1]:,} of 3,000 images" in resumed.stdout
    assert not done.parent.exists()
    alone = ditlab(*command, tmp_path / "alone.npz")
    assert alone.code == 0, alone
    assert out.read_bytes() == (tmp_path / "alone.npz").read_bytes()


def test_random_labels_depend_on_the_seed_and_not_on_the_count(make: Callable, refuses: Callable):
    model = make()
    labels = model.random_labels(None, 6000, 3)
    assert model.random_labels(None, 700, 3) == labels[:700]
    assert model.random_labels(None, 6000, 4) != labels
    counts = np.bincount(labels, minlength=3)
    assert len(counts) == 3
    assert (abs(counts - 2000) < 150).all()  # four standard deviations
    assert (counts != 2000).any()
    assert set(model.random_labels(["fish", 0], 50, 0)) == {2, 0}
    refuses(lambda: model.random_labels(["bird"], 5, 0), "unknown label 'bird'")
    assert make(names=()).random_labels(None, 5, 0) == []


def test_a_digest_of_weights_changes_with_any_of_them(make: Callable):
    model = make()
    before = weights_digest(model)
    assert before == weights_digest(make())
    model.network.state_dict()["patch_embedding.weight"][0, 0] += 1
    assert weights_digest(model) != before
