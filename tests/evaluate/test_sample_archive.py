import tracemalloc
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from ditlab.evaluate.sample_archive import read_archive
from ditlab.pipelines import write


def images(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, shape, np.uint8)


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_what_sampling_writes_is_read(tmp_path: Path, channels: int):
    made = images(5, 6, 7, channels)
    write(made, np.arange(5), (), tmp_path / "a.npz", {})
    np.testing.assert_array_equal(read_archive(tmp_path / "a.npz"), made)


def test_archives_of_others_are_read_labels_statistics_and_all(tmp_path: Path):
    made = images(3, 4, 4, 3)
    np.savez(tmp_path / "a.npz", mu=np.zeros(3), arr_1=np.arange(3), arr_0=made)
    np.testing.assert_array_equal(read_archive(tmp_path / "a.npz"), made)
    np.savez_compressed(tmp_path / "b.npz", made, np.arange(3))
    np.testing.assert_array_equal(read_archive(tmp_path / "b.npz"), made)
    for pack in (np.savez, np.savez_compressed):
        pack(tmp_path / "c.npz", np.asfortranarray(made))
        np.testing.assert_array_equal(read_archive(tmp_path / "c.npz"), made)


def test_a_newer_header_is_read_as_well(tmp_path: Path):
    made = images(3, 4, 4, 3)
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive, archive.open("arr_0.npy", "w") as member:
        np.lib.format.write_array(member, made, version=(2, 0))
    np.testing.assert_array_equal(read_archive(tmp_path / "a.npz"), made)


def test_images_stay_on_disk(tmp_path: Path):
    made = images(400, 128, 128, 3)  # 19 MB
    np.savez(tmp_path / "a.npz", made)
    tracemalloc.start()
    try:
        batch = np.array(read_archive(tmp_path / "a.npz")[200:204])
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    np.testing.assert_array_equal(batch, made[200:204])
    assert peak < 2**20


def test_torch_takes_the_images_and_cannot_change_the_file(tmp_path: Path):
    made = images(3, 4, 4, 3)
    np.savez(tmp_path / "a.npz", made)
    torch.from_numpy(read_archive(tmp_path / "a.npz")[:2]).zero_()  # a warning is an error here
    np.testing.assert_array_equal(read_archive(tmp_path / "a.npz"), made)


def mixed() -> np.ndarray:
    array = np.empty(2, object)
    array[:] = [images(4, 4, 3), images(5, 4, 3)]
    return array


@pytest.mark.parametrize("pack", [np.savez, np.savez_compressed])
@pytest.mark.parametrize(
    ("arrays", "words"),
    [
        ({"images": images(2, 4, 4, 3), "labels": np.arange(2)}, ("no arr_0", "images, labels")),
        ({}, ("no arr_0", "(none)")),
        ({"arr_0": images(2, 4, 4, 3).astype(np.float32)}, ("float32", "uint8")),
        ({"arr_0": images(2, 4, 4)}, ("(2, 4, 4)", "(N, H, W, C)")),
        ({"arr_0": images(2, 3, 8, 8)}, ("(2, 3, 8, 8)", "C 1, 3 or 4")),
        ({"arr_0": images(0, 4, 4, 3)}, ("(0, 4, 4, 3)",)),
        ({"arr_0": mixed()}, ("mixed sizes",)),
    ],
    ids=["keys", "nothing", "float", "no-channels", "channels-first", "none", "mixed"],
)
def test_anything_else_is_refused(
    tmp_path: Path, refuses: Callable[..., str], pack: Callable, arrays: dict, words: tuple[str, ...]
):
    pack(tmp_path / "a.npz", **arrays)
    refuses(lambda: read_archive(tmp_path / "a.npz"), "a.npz", *words)


def test_a_file_that_is_no_whole_npz_is_refused(tmp_path: Path, refuses: Callable[..., str]):
    np.savez(tmp_path / "whole.npz", images(9, 8, 8, 3))
    (tmp_path / "cut.npz").write_bytes((tmp_path / "whole.npz").read_bytes()[:1000])
    (tmp_path / "text.npz").write_text("pictures")
    for name in ("cut.npz", "text.npz"):
        refuses(lambda name=name: read_archive(tmp_path / name), name, "no .npz file")
    refuses(lambda: read_archive(tmp_path / "nowhere.npz"), "nowhere.npz", "No such file")
    refuses(lambda: read_archive(tmp_path), "cannot be read")
    content = (tmp_path / "whole.npz").read_bytes()
    with zipfile.ZipFile(tmp_path / "whole.npz") as archive:
        member = archive.read("arr_0.npy")
    with zipfile.ZipFile(tmp_path / "short.npz", "w") as archive:
        archive.writestr("arr_0.npy", member[:-1])
    refuses(lambda: read_archive(tmp_path / "short.npz"), "short.npz", "(9, 8, 8, 3)")
    with zipfile.ZipFile(tmp_path / "foreign.npz", "w") as archive:
        archive.writestr("arr_0.npy", b"no numpy at all")
    refuses(lambda: read_archive(tmp_path / "foreign.npz"), "foreign.npz", "cannot be read")
    assert (tmp_path / "whole.npz").read_bytes() == content


def test_a_damaged_compressed_archive_is_refused(tmp_path: Path, refuses: Callable[..., str]):
    np.savez_compressed(tmp_path / "a.npz", images(9, 8, 8, 3))
    content = bytearray((tmp_path / "a.npz").read_bytes())
    content[len(content) // 2] ^= 255
    (tmp_path / "a.npz").write_bytes(content)
    refuses(lambda: read_archive(tmp_path / "a.npz"), "a.npz", "cannot be read")
