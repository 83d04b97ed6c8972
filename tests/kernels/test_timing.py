"""Timing inside the library: it counts calls and bytes, and refuses what does not fit. No duration is judged."""

import numpy as np
import pytest

from tailcut.errors import InputError
from tailcut.kernels import library
from tailcut.kernels.library import CpuMatrix
from tailcut.kernels.timing import stream_read, time_pool

pytestmark = pytest.mark.skipif(library.find() is None, reason=str(library.problem()))


def pool(count: int) -> list[CpuMatrix]:
    values = np.random.default_rng(0).standard_normal((16, 64)).astype(np.float32)
    return [CpuMatrix(values.reshape(-1), (16, 64)) for _ in range(count)]


def test_every_call_is_a_product() -> None:
    matrices = pool(3)
    before = sum(library.counters().values())
    seconds = time_pool(matrices, np.ones((2, 64), np.float32), threads=2, calls=7, first=5)
    assert seconds.shape == (7,)
    assert np.all(seconds > 0)
    assert sum(library.counters().values()) == before + 7


def test_reading_takes_time() -> None:
    assert np.isfinite(stream_read(np.ones(1 << 22, np.uint8), threads=2))


@pytest.mark.parametrize("x", [np.ones((1, 63), np.float32), np.ones((1, 64)), np.ones((64, 2), np.float32).T[:, :64]])
def test_activations_that_do_not_fit_are_refused(x: np.ndarray) -> None:
    with pytest.raises(InputError, match="contiguous float32"):
        time_pool(pool(1), x, threads=1, calls=1, first=0)
