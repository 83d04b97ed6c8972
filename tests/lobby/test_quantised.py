"""4-bit values in bytes, and what scales make of integers."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from tailcut.errors import InputError
from tailcut.quantised import GROUP, dequantise, groups, pack_nibbles, spread, unpack_nibbles

NIBBLES = st.integers(-8, 7)


@given(arrays.arrays(np.int8, arrays.array_shapes(min_dims=1, max_dims=2, min_side=0, max_side=9), elements=NIBBLES))
def test_nibbles_come_back(values: np.ndarray) -> None:  # type: ignore[type-arg]
    stored = pack_nibbles(values)
    assert stored.shape == (*values.shape[:-1], (values.shape[-1] + 1) // 2)
    assert np.array_equal(unpack_nibbles(stored, values.shape[-1]), values)


def test_low_half_first_and_padding_is_zero() -> None:
    assert pack_nibbles(np.array([-7, 0, 7], np.int8)).tolist() == [1 | 8 << 4, 15 | 8 << 4]


@pytest.mark.parametrize("count", [0, 1, 5, 100])
def test_a_wrong_number_of_bytes_is_refused(count: int) -> None:
    with pytest.raises(InputError, match=f"{count} 4-bit values need"):
        unpack_nibbles(np.zeros((2, 7), np.uint8), count)


def test_scales_of_rows_and_of_groups() -> None:
    q = np.ones((2, GROUP + 3), np.int8)
    rows = dequantise(q, np.array([0.5, 2], np.float32))
    assert rows[:, 0].tolist() == rows[:, -1].tolist() == [0.5, 2]
    by_group = dequantise(q, np.array([[1, 2], [3, 4]], np.float32))
    assert by_group[:, GROUP - 1].tolist() == [1, 3]
    assert by_group[:, GROUP].tolist() == [2, 4]
    assert by_group.dtype == np.float32
    assert spread(np.ones((2, groups(1)), np.float32), 1).shape == (2, 1)
