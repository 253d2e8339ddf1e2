import tracemalloc
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from ditlab.evaluate.sample_archive import array_names, open_archive, read_archive
from ditlab.pipelines import write_samples


def images(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, shape, np.uint8)


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_archives_of_sampling_are_read(tmp_path: Path, channels: int):
    generated = images(5, 6, 7, channels)
    write_samples(tmp_path / "a.npz", lambda starts: iter([generated]), generated.shape, 5, np.arange(5), (), {})
    np.testing.assert_array_equal(read_archive(tmp_path / "a.npz"), generated)
    assert array_names(tmp_path / "a.npz") == ["arr_0", "arr_1"]


def test_an_archive_is_a_data_set_whose_fingerprint_is_of_its_pixels(tmp_path: Path):
    generated = images(1500, 3, 4, 3)
    np.savez(tmp_path / "a.npz", generated)
    np.savez_compressed(tmp_path / "b.npz", generated)
    np.savez(tmp_path / "c.npz", generated[::-1])
    one, same, other = (open_archive(tmp_path / name) for name in ("a.npz", "b.npz", "c.npz"))
    assert one.describe() == "a.npz: 1,500 images of 3x3x4, no classes"
    np.testing.assert_array_equal(one.read(np.array([2, 1200]))[0], generated[[2, 1200]].transpose(0, 3, 1, 2))
    assert one.fingerprint == same.fingerprint != other.fingerprint


def test_archives_of_other_tools_are_read_with_labels_and_statistics(tmp_path: Path):
    generated = images(3, 4, 4, 3)
    np.savez(tmp_path / "a.npz", mu=np.zeros(3), arr_1=np.arange(3), arr_0=generated)
    np.testing.assert_array_equal(read_archive(tmp_path / "a.npz"), generated)
    np.savez_compressed(tmp_path / "b.npz", generated, np.arange(3))
    np.testing.assert_array_equal(read_archive(tmp_path / "b.npz"), generated)
    for pack in (np.savez, np.savez_compressed):
        pack(tmp_path / "c.npz", np.asfortranarray(generated))
        np.testing.assert_array_equal(read_archive(tmp_path / "c.npz"), generated)


def test_a_newer_header_is_read_as_well(tmp_path: Path):
    generated = images(3, 4, 4, 3)
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive, archive.open("arr_0.npy", "w") as member:
        np.lib.format.write_array(member, generated, version=(2, 0))
    np.testing.assert_array_equal(read_archive(tmp_path / "a.npz"), generated)


def test_images_are_memory_mapped(tmp_path: Path):
    generated = images(400, 128, 128, 3)  # 19 MB
    np.savez(tmp_path / "a.npz", generated)
    tracemalloc.start()
    try:
        batch = np.array(read_archive(tmp_path / "a.npz")[200:204])
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    np.testing.assert_array_equal(batch, generated[200:204])
    assert peak < 2**20


def test_torch_takes_the_images_and_cannot_change_the_file(tmp_path: Path):
    generated = images(3, 4, 4, 3)
    np.savez(tmp_path / "a.npz", generated)
    torch.from_numpy(read_archive(tmp_path / "a.npz")[:2]).zero_()  # a warning is an error here
    np.testing.assert_array_equal(read_archive(tmp_path / "a.npz"), generated)


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


def test_a_file_that_is_not_a_complete_npz_is_refused(tmp_path: Path, refuses: Callable[..., str]):
    np.savez(tmp_path / "whole.npz", images(9, 8, 8, 3))
    (tmp_path / "cut.npz").write_bytes((tmp_path / "whole.npz").read_bytes()[:1000])
    (tmp_path / "text.npz").write_text("pictures")
    for name in ("cut.npz", "text.npz"):
        refuses(lambda name=name: read_archive(tmp_path / name), name, "not a complete .npz file")
    refuses(lambda: read_archive(tmp_path / "nowhere.npz"), "nowhere.npz", "No such file")
    refuses(lambda: read_archive(tmp_path), "cannot be read")
    content = (tmp_path / "whole.npz").read_bytes()
    with zipfile.ZipFile(tmp_path / "whole.npz") as archive:
        member = archive.read("arr_0.npy")
    with zipfile.ZipFile(tmp_path / "short.npz", "w") as archive:
        archive.writestr("arr_0.npy", member[:-1])
    refuses(lambda: read_archive(tmp_path / "short.npz"), "short.npz", "(9, 8, 8, 3)")
    with zipfile.ZipFile(tmp_path / "foreign.npz", "w") as archive:
        archive.writestr("arr_0.npy", b"not numpy")
    refuses(lambda: read_archive(tmp_path / "foreign.npz"), "foreign.npz", "cannot be read")
    assert (tmp_path / "whole.npz").read_bytes() == content


def test_a_damaged_compressed_archive_is_refused(tmp_path: Path, refuses: Callable[..., str]):
    np.savez_compressed(tmp_path / "a.npz", images(9, 8, 8, 3))
    content = bytearray((tmp_path / "a.npz").read_bytes())
    content[len(content) // 2] ^= 255
    (tmp_path / "a.npz").write_bytes(content)
    refuses(lambda: read_archive(tmp_path / "a.npz"), "a.npz", "cannot be read")
