import json
import pickle
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ditlab.evaluate.statistics import BLOCK, Reference, Statistics, read_statistics, write_statistics


def rows(count: int, width: int = 5, seed: int = 0) -> np.ndarray:
    random = np.random.default_rng(seed)
    return random.normal(size=(count, width)) @ random.normal(size=(width, width)) + random.normal(size=width) * 3


def of(*batches: np.ndarray) -> Statistics:
    statistics = Statistics(batches[0].shape[1])
    for batch in batches:
        statistics.update(batch)
    return statistics


def cut(features: np.ndarray, places: list[int]) -> list[np.ndarray]:
    return np.split(features, sorted(place % (len(features) + 1) for place in places))


@pytest.mark.parametrize("count", [2, 7, BLOCK - 1, BLOCK, BLOCK + 1, 3 * BLOCK + 5])
def test_mean_and_covariance_are_numpys(count: int):
    features = rows(count)
    statistics = of(features)
    assert statistics.count == count
    np.testing.assert_allclose(statistics.mean, features.mean(axis=0), rtol=1e-12)
    np.testing.assert_allclose(statistics.covariance, np.cov(features, rowvar=False), rtol=1e-11, atol=1e-13)
    np.testing.assert_array_equal(statistics.covariance, statistics.covariance.T)


@given(st.lists(st.integers(0, 10**6), max_size=6))
def test_the_result_does_not_depend_on_the_batches(places: list[int]):
    features = rows(BLOCK + 300)
    whole, parts = of(features), of(*cut(features, places))
    np.testing.assert_array_equal(parts.mean, whole.mean)
    np.testing.assert_array_equal(parts.covariance, whole.covariance)


@given(st.lists(st.integers(0, 10**6), min_size=1, max_size=6), st.booleans())
def test_shards_merged_are_the_whole(places: list[int], backwards: bool):
    features = rows(2 * BLOCK + 300)
    merged = Statistics(features.shape[1])
    for shard in reversed(cut(features, places)) if backwards else cut(features, places):
        merged.merge(of(shard))
    assert merged.count == len(features)
    np.testing.assert_allclose(merged.mean, of(features).mean, rtol=1e-12)
    np.testing.assert_allclose(merged.covariance, of(features).covariance, rtol=1e-12, atol=1e-12)


def test_the_part_of_a_block_that_waits_is_merged_too():
    first, second = of(rows(10)), of(rows(20, seed=1))
    first.merge(second)
    both = np.concatenate([rows(10), rows(20, seed=1)])
    np.testing.assert_allclose(first.covariance, np.cov(both, rowvar=False), rtol=1e-12)
    np.testing.assert_allclose(second.covariance, np.cov(rows(20, seed=1), rowvar=False), rtol=1e-12)
    assert (first.count, second.count) == (30, 20)


def test_a_mean_a_hundred_million_times_the_spread_costs_no_digits():
    noise = (
        np.random.default_rng(0).integers(-8, 9, (BLOCK + 500, 3)).astype(np.float64)
    )  # exact after the addition too
    features = noise + 1e8
    halves = of(features[:700])
    halves.merge(of(features[700:]))
    for statistics in (of(features), halves):
        np.testing.assert_allclose(statistics.covariance, np.cov(noise, rowvar=False), rtol=1e-9, atol=1e-7)
        np.testing.assert_allclose(statistics.mean - 1e8, noise.mean(axis=0), atol=1e-7)
    plain = (features.T @ features - len(features) * np.outer(features.mean(0), features.mean(0))) / (len(features) - 1)
    assert np.abs(plain - np.cov(noise, rowvar=False)).max() > 0.1  # what plain sums would have given


def test_means_that_drift_from_block_to_block_are_followed():
    features = rows(4 * BLOCK) + np.repeat([0.0, 50.0, -50.0, 900.0], BLOCK)[:, None]
    np.testing.assert_allclose(of(features).covariance, np.cov(features, rowvar=False), rtol=1e-11)


def test_looking_at_statistics_in_between_changes_nothing():
    features = rows(900)
    statistics = of(features[:100])
    middle = statistics.covariance
    statistics.mean[:] = 7  # what was given out is a copy
    statistics.update(features[100:])
    np.testing.assert_allclose(middle, np.cov(features[:100], rowvar=False), rtol=1e-12)
    np.testing.assert_allclose(statistics.mean, features.mean(axis=0), rtol=1e-12)
    np.testing.assert_allclose(statistics.covariance, np.cov(features, rowvar=False), rtol=1e-12)


@pytest.mark.parametrize("dtype", [np.float32, np.float16, np.uint8, np.int64])
def test_any_number_type_is_added_up_in_float64_and_left_as_it_was(dtype: type):
    features = np.random.default_rng(0).integers(0, 256, (300, 4)).astype(dtype)
    before = features.copy()
    np.testing.assert_allclose(of(features).covariance, np.cov(features.astype(np.float64), rowvar=False), rtol=1e-12)
    np.testing.assert_array_equal(features, before)


def test_statistics_go_from_process_to_process():
    statistics = of(rows(BLOCK + 40))
    arrived = pickle.loads(pickle.dumps(statistics))
    assert arrived.count == statistics.count
    np.testing.assert_array_equal(arrived.covariance, statistics.covariance)


def test_what_cannot_be_is_refused():
    statistics = Statistics(5)
    with pytest.raises(ValueError, match="no features"):
        _ = statistics.mean
    for wrong in (np.zeros((3, 4)), np.zeros(5)):
        with pytest.raises(ValueError, match=r"\(N, 5\)"):
            statistics.update(wrong)
    with pytest.raises(ValueError, match="4"):
        statistics.merge(Statistics(4))
    statistics.update(np.ones((1, 5)))
    with pytest.raises(ValueError, match="two rows"):
        _ = statistics.covariance
    np.testing.assert_array_equal(statistics.mean, np.ones(5))


SPATIAL = of(rows(50, 3, seed=9))
POOLED = of(rows(60))
FULL = Reference(
    POOLED.mean, POOLED.covariance, SPATIAL.mean, SPATIAL.covariance, 60, "FD-EffNetLite0@64", (28, 32), "ten clothes"
)


def same(a: Reference, b: Reference) -> bool:
    arrays = ("mean", "covariance", "spatial_mean", "spatial_covariance")
    words = ("count", "distance", "size", "images")
    return all(np.array_equal(getattr(a, n), getattr(b, n)) for n in arrays) and all(
        getattr(a, n) == getattr(b, n) for n in words
    )


@pytest.mark.parametrize("reference", [FULL, Reference(POOLED.mean, POOLED.covariance)], ids=["full", "least"])
def test_a_reference_comes_back_as_it_was_written(tmp_path: Path, reference: Reference):
    write_statistics(tmp_path / "new" / "a.npz", reference)
    read = read_statistics(tmp_path / "new" / "a.npz")
    assert (read.spatial_mean is None) == (reference.spatial_mean is None)
    if reference.spatial_mean is None:
        assert same(read, Reference(reference.mean, reference.covariance, None, None))
    else:
        assert same(read, reference)


def test_others_find_their_keys_in_it(tmp_path: Path):
    write_statistics(tmp_path / "a.npz", FULL)
    with np.load(tmp_path / "a.npz", allow_pickle=False) as archive:
        assert archive["mu_s"].shape == (3,)
        np.testing.assert_array_equal(archive["mu"][:], POOLED.mean)
        np.testing.assert_array_equal(archive["sigma"][:], POOLED.covariance)
        np.testing.assert_array_equal(archive["sigma_s"], SPATIAL.covariance)
        assert json.loads(str(archive["ditlab"]))["count"] == 60


def test_a_file_of_pytorch_fid_is_read(tmp_path: Path):
    np.savez_compressed(tmp_path / "a.npz", mu=POOLED.mean, sigma=POOLED.covariance)
    read = read_statistics(tmp_path / "a.npz")
    assert same(read, Reference(POOLED.mean, POOLED.covariance))
    assert (read.distance, read.size, read.count) == ("FID", None, 0)


def test_a_reference_batch_of_adm_is_read_without_its_images(tmp_path: Path):
    np.savez(
        tmp_path / "a.npz", arr_0=np.zeros((500, 64, 64, 3), np.uint8), arr_1=np.zeros(500), mu_s=SPATIAL.mean,
        sigma_s=SPATIAL.covariance, mu=POOLED.mean.astype(np.float32), sigma=POOLED.covariance.astype(np.float32),
    )  # fmt: skip
    tracemalloc.start()
    try:
        read = read_statistics(tmp_path / "a.npz")
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 2**20  # the images are 6
    assert read.mean.dtype == read.covariance.dtype == np.float64
    np.testing.assert_allclose(read.covariance, POOLED.covariance, rtol=1e-6)
    np.testing.assert_array_equal(read.spatial_covariance, SPATIAL.covariance)


KEYS = {"mu": np.zeros(3), "sigma": np.eye(3), "mu_s": np.zeros(2), "sigma_s": np.eye(2)}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"mu": None}, ("no mu ", "sigma, mu_s")),
        ({"sigma": None}, ("no sigma ", "mu, mu_s")),
        ({"mu_s": None}, ("no mu_s ",)),
        ({"sigma_s": None}, ("no sigma_s ",)),
        (dict.fromkeys(KEYS), ("no mu ", "(none)")),
        ({"sigma": np.eye(4)}, ("(3,)", "(4, 4)", "(D, D)")),
        ({"mu": np.zeros((3, 3))}, ("(3, 3)", "(D,)")),
        ({"sigma_s": np.eye(3)}, ("sigma_s", "(2,)")),
        ({"mu": np.array([0, np.nan, 0])}, ("mu", "not finite")),
        ({"sigma": np.diag([1, np.inf, 1])}, ("sigma", "not finite")),
        ({"mu": np.array([None, 1, 2])}, ("cannot be read",)),
    ],
)
def test_a_file_without_statistics_is_refused(
    tmp_path: Path, refuses: Callable[..., str], change: dict, words: tuple[str, ...]
):
    np.savez(tmp_path / "a.npz", **{name: array for name, array in (KEYS | change).items() if array is not None})
    refuses(lambda: read_statistics(tmp_path / "a.npz"), "a.npz", *words)


def test_a_file_that_is_not_an_npz_is_refused(tmp_path: Path, refuses: Callable[..., str]):
    write_statistics(tmp_path / "whole.npz", FULL)
    whole = (tmp_path / "whole.npz").read_bytes()
    (tmp_path / "cut.npz").write_bytes(whole[: len(whole) // 2])
    middle = len(whole) // 2
    (tmp_path / "damaged.npz").write_bytes(whole[:middle] + bytes([whole[middle] ^ 255]) + whole[middle + 1 :])
    (tmp_path / "text.npz").write_text("mu, sigma")
    (tmp_path / "empty.npz").write_bytes(b"")
    np.save(tmp_path / "array.npy", np.zeros(3))
    for name in ("cut.npz", "text.npz", "empty.npz", "array.npy"):
        refuses(lambda name=name: read_statistics(tmp_path / name), name, "not a complete .npz file")
    refuses(lambda: read_statistics(tmp_path / "damaged.npz"), "damaged.npz", "CRC")
    refuses(lambda: read_statistics(tmp_path / "nowhere.npz"), "nowhere.npz", "No such file")
    refuses(lambda: read_statistics(tmp_path), str(tmp_path), "cannot be read")


def test_a_place_that_cannot_be_written_is_said_and_what_stood_there_stays(tmp_path: Path, refuses: Callable[..., str]):
    (tmp_path / "file").write_text("mine")
    refuses(lambda: write_statistics(tmp_path / "file" / "a.npz", FULL), "cannot write")
    assert (tmp_path / "file").read_text() == "mine"


def test_a_reference_is_compared_with_features_of_its_own_kind_only(refuses: Callable[..., str]):
    path, kind = Path("a.npz"), "FD-EffNetLite0@64"
    FULL.check(path, kind, 5, (28, 32))
    refuses(lambda: FULL.check(path, "FID", 5, (28, 32)), "a.npz", kind, "by FID")
    refuses(lambda: FULL.check(path, kind, 2048, (28, 32)), "a.npz", "5 features", "2048")
    refuses(lambda: FULL.check(path, kind, 5, (32, 28)), "a.npz", "28x32", "32x28")
    unsaid = Reference(POOLED.mean, POOLED.covariance)
    unsaid.check(path, "FID", 5, (256, 256))
    refuses(lambda: unsaid.check(path, kind, 5, (256, 256)), "FID", kind)
