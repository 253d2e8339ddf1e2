"""Features of real images: their content, their cache, and equal results of several processes."""

from __future__ import annotations

import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from forked import Forked, together

from ditlab.data import DataConfig, Dataset, open_data
from ditlab.evaluate import real as module
from ditlab.evaluate.features import FeatureNetwork
from ditlab.evaluate.real import RealImages, evenly_spaced, extract, real_features

FILES = ["even.npz", "features.npz", "odd.npz", "whole.npz"]


def compute(dataset: Dataset, network: FeatureNetwork) -> RealImages:
    real = real_features(dataset, network)
    assert real is not None
    return real


def features(dataset: Dataset, network: FeatureNetwork) -> np.ndarray:
    """Of all images in one batch, float64."""
    return network.extract(dataset.load().pixels.transpose(0, 2, 3, 1)).pooled.astype(np.float64)


def same(one: RealImages, other: RealImages) -> None:
    for ours, theirs in ((one.statistics, other.statistics), *zip(one.halves, other.halves, strict=True)):
        np.testing.assert_allclose(ours.mean, theirs.mean, rtol=1e-12, atol=1e-13)
        np.testing.assert_allclose(ours.covariance, theirs.covariance, rtol=1e-11, atol=1e-12)
        assert (ours.count, ours.distance, ours.size) == (theirs.count, theirs.distance, theirs.size)
    np.testing.assert_array_equal(one.indices, other.indices)
    np.testing.assert_array_equal(one.pooled, other.pooled)


def test_a_data_set_has_statistics_of_it_and_of_its_halves(real: Dataset, projection: FeatureNetwork):
    found, expected = compute(real, projection), features(real, projection)
    for reference, rows in zip(
        (found.statistics, *found.halves), (expected, expected[::2], expected[1::2]), strict=True
    ):
        np.testing.assert_allclose(reference.mean, rows.mean(axis=0), rtol=1e-5)
        np.testing.assert_allclose(reference.covariance, np.cov(rows, rowvar=False), rtol=1e-4, atol=1e-5)
        assert (reference.count, reference.distance, reference.size) == (len(rows), "FD-Projection@8", (8, 8))
    np.testing.assert_array_equal(found.indices, np.arange(601))
    np.testing.assert_allclose(found.pooled, expected, rtol=1e-5, atol=1e-5)
    assert found.pooled.dtype == np.float32
    assert found.describe() == "digits: 601 images of 1x8x8, 10 classes"


def test_spatial_features_have_statistics_too(real: Dataset, complete: FeatureNetwork):
    found = compute(real, complete)
    spatial = complete.extract(real.load().pixels.transpose(0, 2, 3, 1)).spatial
    assert spatial is not None
    for reference, rows in zip((found.statistics, *found.halves), (spatial, spatial[::2], spatial[1::2]), strict=True):
        assert reference.spatial_mean is not None
        assert reference.spatial_covariance is not None
        np.testing.assert_allclose(reference.spatial_mean, rows.astype(np.float64).mean(axis=0), rtol=1e-5)
        np.testing.assert_allclose(reference.spatial_covariance, np.cov(rows, rowvar=False), rtol=1e-4, atol=1e-5)


def test_the_second_time_nothing_is_computed(real: Dataset, projection, complete, cache: Path):
    for network in (projection, complete):
        network.distance = f"{network.distance}, {network.everything}"
        progress: list[int] = []
        first = compute(real, network)
        assert network.shown == 601
        second = real_features(real, network, progress=progress.append)
        assert second is not None
        assert network.shown == 601
        assert progress == [601]
        same(first, second)
        assert (first.statistics.spatial_mean is None) == (second.statistics.spatial_mean is None)
        assert second.describe() == first.describe()
    assert [sorted(file.name for file in place.iterdir()) for place in cache.iterdir()] == [FILES] * 2


def test_other_images_other_networks_and_other_formats_are_not_confused(
    real: Dataset, projection, cache: Path, monkeypatch: pytest.MonkeyPatch
):
    first = compute(real, projection)
    fewer = compute(open_data(replace(real.config, limit=300)), projection)
    assert (projection.shown, fewer.statistics.count) == (901, 300)
    projection.distance = "FD-Projection@9"
    assert compute(real, projection).statistics.distance == "FD-Projection@9"
    assert projection.shown == 1502
    with monkeypatch.context() as patch:
        patch.setattr(module, "FORMAT", module.FORMAT + 1)
        compute(real, projection)
    assert projection.shown == 2103
    assert len(list(cache.iterdir())) == 4
    projection.distance = "FD-Projection@8"
    same(compute(real, projection), first)
    assert projection.shown == 2103


def test_the_same_images_in_another_folder_have_their_own_name(
    digits: np.ndarray, draw: Callable, projection, tmp_path: Path, cache: Path
):
    for name in ("here", "there"):
        config = DataConfig(source="folder", path=str(draw(digits[:40], tmp_path / name)))
        assert compute(open_data(config), projection).describe().startswith(f"{tmp_path / name}: 40 images")
    assert projection.shown == 40


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("damage", ["missing", "cut", "changed", "other"])
def test_a_damaged_cache_is_made_anew(real: Dataset, projection, cache: Path, name: str, damage: str):
    first = compute(real, projection)
    path = next(cache.iterdir()) / name
    content = bytearray(path.read_bytes())
    if damage == "missing":
        path.unlink()
    elif damage == "other":
        np.savez(path, something=np.arange(3))
    else:
        content[len(content) // 2] ^= 255
        path.write_bytes(content[: len(content) // 2] if damage == "cut" else content)
    same(compute(real, projection), first)
    assert projection.shown == 2 * 601
    same(compute(real, projection), first)
    assert projection.shown == 2 * 601


KILLED = """
import os, signal, sys
sys.path.insert(0, sys.argv[1])
from conftest import Projection
from ditlab.runtime import files
from ditlab.data import DataConfig, open_data
from ditlab.evaluate.real import real_features

replace, done = os.replace, [0]
def killed(self, *_):
    done[0] += 1
    if done[0] == 3:  # the file is written, but not yet under its name
        os.kill(os.getpid(), signal.SIGKILL)
    replace(self, *_)
files.Path.replace = killed
real_features(open_data(DataConfig(limit=601)), Projection())
"""


def test_a_kill_halfway_leaves_nothing_half_written(real: Dataset, projection, cache: Path):
    ended = Forked(Path(__file__).parent, script=KILLED).wait()
    assert ended.returncode == -signal.SIGKILL, ended.stderr
    left = [file.name for file in next(cache.iterdir()).iterdir() if not file.name.startswith(".")]
    assert sorted(left) == ["even.npz", "whole.npz"]
    found, expected = compute(real, projection), features(real, projection)
    assert projection.shown == 2 * 601
    np.testing.assert_allclose(found.pooled, expected, rtol=1e-5, atol=1e-5)


TOGETHER = """
import sys
sys.path.insert(0, sys.argv[1])
from pathlib import Path
import numpy as np
from conftest import Projection
from ditlab.data import DataConfig, open_data
from ditlab.evaluate import evaluator, real
from ditlab.evaluate import Evaluator, extract_features
from ditlab.runtime.distributed import join, leave

real.BATCH, evaluator.SEARCHED = 50, 100
processes = join()
network, dataset = Projection(True), open_data(DataConfig(limit=601))
judge = Evaluator.of(dataset, network, processes)
once, shown = judge is not None, network.shown
again = Evaluator.of(dataset, network, processes)  # from the cache
images = np.load(sys.argv[2])
batches = [images[start : start + 32] for start in range(32 * processes.rank, len(images), 32 * processes.size)]
extracted = extract_features(network, batches, processes)
shares = processes.gather((once, shown, network.shown))
assert (judge is not None) == (extracted is not None) == processes.is_main
if judge is not None and extracted is not None:
    assert network.shown - shown == sum(map(len, batches))
    numbers = {**judge.measure(extracted), **{f"floor {name}": number for name, number in judge.floor().items()}}
    np.savez(
        Path(sys.argv[3]), shares=shares, images=extracted.images, pooled=extracted.features.pooled,
        spatial=extracted.features.spatial, names=list(numbers), values=[number.value for number in numbers.values()],
        spreads=[np.nan if number.spread is None else number.spread for number in numbers.values()],
        mean=judge.reference.mean, covariance=judge.reference.covariance, indices=judge.real.indices, kept=judge.real.pooled,
    )
leave()
"""


def test_one_process_and_three_give_the_same_numbers(
    digits: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    np.save(tmp_path / "generated.npy", digits[700:1170])  # 15 batches, the last one short
    results = []
    for size in (1, 3):
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / f"cache {size}"))
        words = [Path(__file__).parent, tmp_path / "generated.npy", tmp_path / f"{size}.npz"]
        ended = together(size, *words, script=TOGETHER)
        assert ended.returncode == 0, ended.stderr
        results.append(np.load(tmp_path / f"{size}.npz"))
    one, many = results
    assert one["shares"].tolist() == [[1, 601, 601 + 470]]
    # Of thirteen batches of real images and fifteen of generated ones.
    assert many["shares"].tolist() == [[1, 201 + 0, 201 + 160], [0, 200, 200 + 160], [0, 200, 200 + 150]]
    np.testing.assert_array_equal(one["images"], digits[700:800])
    for name in ("images", "pooled", "spatial", "names", "indices", "kept"):
        np.testing.assert_array_equal(one[name], many[name])
    for name in ("mean", "covariance", "values", "spreads"):
        np.testing.assert_allclose(one[name], many[name], rtol=1e-9, atol=1e-11)
    assert len(one["names"]) == 6 + 5  # no score of real images


@pytest.mark.parametrize("count", [100, 101, 199, 200, 201, 397, 601])
def test_stored_images_are_evenly_spaced_in_the_data_set_and_in_both_halves(
    count: int, projection: FeatureNetwork, cache: Path, monkeypatch: pytest.MonkeyPatch
):
    """Every second image of 199, one half alone, is what an even choice of 100 would be."""
    monkeypatch.setattr(module, "STORED", 100)
    dataset = open_data(DataConfig(limit=count))
    found = compute(dataset, projection)
    assert len(found.indices) in (99, 100)
    assert np.diff(found.indices).min() >= 1
    assert np.diff(found.indices).max() <= 2 * count / 100 + 1
    assert found.indices[0] == 0
    assert found.indices[-1] >= count - 2 * count / 100 - 1
    np.testing.assert_allclose(found.pooled, features(dataset, projection)[found.indices], rtol=1e-5, atol=1e-5)
    for half in (0, 1):
        assert len(found.sample(1000, half)) in (49, 50)
        chosen = found.sample(10, half)
        rows = [int(np.flatnonzero((found.pooled == feature).all(axis=1))[0]) for feature in chosen]
        assert set(found.indices[rows] % 2) == {half}
        assert np.diff(rows).min() >= 8
    assert found.statistics.count == count


def test_a_sample_is_evenly_spaced():
    for count, most in ((1, 1), (5, 9), (10, 3), (10_000, 7), (0, 4)):
        chosen = evenly_spaced(count, most)
        assert len(chosen) == min(count, most)
        steps = np.diff([*chosen, count])
        assert not len(steps) or steps.max() - steps[:-1].min(initial=steps.max()) <= 1
        assert not len(chosen) or chosen[0] == 0


def test_unreadable_images_are_skipped_and_counted(
    digits: np.ndarray, draw: Callable, projection, tmp_path: Path, cache: Path
):
    folder = draw(digits[:300], tmp_path / "digits")
    for name in ("0000.png", "0007.png", "0280.png"):
        (folder / name).write_bytes(b"nothing")
    config = DataConfig(source="folder", path=str(folder))
    dataset = open_data(config)
    found = compute(dataset, projection)
    left = np.setdiff1d(np.arange(300), [0, 7, 280])
    np.testing.assert_array_equal(found.indices, left)
    expected = projection.extract(digits[left]).pooled
    np.testing.assert_allclose(found.statistics.mean, expected.astype(np.float64).mean(axis=0), rtol=1e-5)
    assert found.describe().endswith("300 images of 1x8x8, no classes, 3 unreadable, skipped")
    assert compute(open_data(config), projection).describe() == found.describe()  # the cache does not forget
    np.testing.assert_array_equal(found.images(np.array([0, 5, 6])), digits[[1, 6, 8]])


def test_a_real_image_that_can_no_longer_be_read_is_one_line(
    digits: np.ndarray, draw: Callable, projection, tmp_path: Path, cache: Path, refuses: Callable
):
    folder = draw(digits[:20], tmp_path / "digits")
    config = DataConfig(source="folder", path=str(folder))
    compute(open_data(config), projection)
    path = folder / "0003.png"
    path.write_bytes(bytes(len(path.read_bytes())))
    refuses(lambda: compute(open_data(config), projection).images(np.array([2, 3])), "0003.png", "no longer")


@pytest.mark.parametrize("count", [1, 3])
def test_too_few_images_are_refused(
    digits: np.ndarray, draw: Callable, projection, tmp_path: Path, cache: Path, refuses: Callable, count: int
):
    config = DataConfig(source="folder", path=str(draw(digits[:count], tmp_path / "digits")))
    refuses(lambda: real_features(open_data(config), projection), f"{count} image", "too few", "at least 4")
    assert not list(next(cache.iterdir()).iterdir())


def test_a_cache_folder_that_cannot_be_made_is_said_before_any_image_is_seen(
    real: Dataset, projection, tmp_path: Path, refuses: Callable, monkeypatch: pytest.MonkeyPatch
):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    refuses(lambda: real_features(real, projection), "XDG_CACHE_HOME", "Not a directory")
    assert projection.shown == 0


@pytest.mark.parametrize("count", [1, 31, 32, 33, 100])
def test_features_do_not_depend_on_how_many_are_seen_at_a_time(
    digits: np.ndarray, complete: FeatureNetwork, count: int
):
    parts, whole = extract(complete, digits[:count]), complete.extract(digits[:count])
    for ours, theirs in zip(vars(parts).values(), vars(whole).values(), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-5)
