import numpy as np
import pytest
import torch

from ditlab.encoders import ChannelStatistics


@pytest.mark.parametrize("sizes", [(12,), (5, 7), (1,) * 12])
def test_streamed_statistics_are_numpys_in_float64_however_the_batches_are_cut(sizes: tuple[int, ...]):
    random = np.random.default_rng(0)
    values = (random.normal(size=(12, 3, 4, 5)) * [[[1e-2]], [[1.0]], [[50.0]]] + [[[3.0]], [[-7.0]], [[0.0]]]).astype(
        np.float32
    )
    statistics = ChannelStatistics(3)
    for part in np.split(values, np.cumsum(sizes)[:-1]):
        statistics.add(torch.from_numpy(part))
    mean, std = statistics.result()
    assert mean.dtype == std.dtype == torch.float64
    np.testing.assert_allclose(mean, values.astype(np.float64).mean((0, 2, 3)), rtol=1e-12)
    np.testing.assert_allclose(std, values.astype(np.float64).std((0, 2, 3)), rtol=1e-8)


def test_half_precision_is_added_up_in_double():
    values = torch.full((4, 1, 64, 64), 10.0, dtype=torch.float16)
    statistics = ChannelStatistics(1)
    statistics.add(values)  # 163,840 overflows half precision
    mean, std = statistics.result()
    assert (mean.item(), std.item()) == (10.0, 0.0)


def test_statistics_of_nothing_are_refused():
    with pytest.raises(ValueError, match="no latents"):
        ChannelStatistics(2).result()
