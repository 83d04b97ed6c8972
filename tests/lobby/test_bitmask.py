"""The bitmask format: an exact round trip for every dtype, and no way to make it take memory by lying."""

from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tailcut.bitmask import Packed, nonzero_bits, pack, unpack
from tailcut.errors import InputError

DTYPES = [
    np.dtype(kind)
    for kind in (
        np.float64, np.float32, np.float16, ml_dtypes.bfloat16, ml_dtypes.float8_e4m3fn, ml_dtypes.float8_e5m2,
        np.int64, np.int32, np.int16, np.int8, np.uint64, np.uint32, np.uint16, np.uint8,
    )
]  # fmt: skip
UNSIGNED = {1: np.uint8, 2: np.uint16, 4: np.uint32, 8: np.uint64}


@st.composite
def matrices(draw: st.DrawFn) -> np.ndarray[Any, Any]:
    """Any bit pattern in any dtype, about half of them zero; odd widths, empty sides, strided views."""
    dtype = draw(st.sampled_from(DTYPES))
    rows, columns = draw(st.integers(0, 9)), draw(st.integers(0, 35))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    bits = rng.integers(0, 256, (rows, columns * dtype.itemsize), dtype=np.uint8)
    bits = bits.view(UNSIGNED[dtype.itemsize]).reshape(rows, columns)
    dense = (bits * (rng.random((rows, columns)) < draw(st.sampled_from([0.0, 0.3, 1.0])))).astype(bits.dtype)
    view = dense.view(dtype)
    step = draw(st.sampled_from(["plain", "transposed", "reversed", "every other"]))
    return {"plain": view, "transposed": view.T, "reversed": view[::-1, ::-1], "every other": view[:, ::2]}[step]


def same_bits(a: np.ndarray[Any, Any], b: np.ndarray[Any, Any]) -> bool:
    return a.dtype == b.dtype and a.shape == b.shape and np.ascontiguousarray(a).tobytes() == b.tobytes()


@given(matrices())
def test_round_trip_is_exact(dense: np.ndarray[Any, Any]) -> None:
    packed = pack(dense)
    assert same_bits(dense, unpack(packed))
    assert packed.values.size == int(nonzero_bits(dense).sum())
    assert packed.mask.nbytes == dense.shape[0] * ((dense.shape[1] + 7) // 8)


@given(matrices())
def test_row_offsets_point_at_each_rows_values(dense: np.ndarray[Any, Any]) -> None:
    packed = pack(dense)
    ends = [*packed.row_offsets[1:], packed.values.size]
    assert len(packed.row_offsets) == dense.shape[0]
    for row, (start, stop) in enumerate(zip(packed.row_offsets, ends, strict=False)):
        kept = dense[row][nonzero_bits(dense[row])]
        assert np.ascontiguousarray(kept).tobytes() == packed.values[start:stop].tobytes()


@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16])
def test_negative_zero_nan_and_denormals_survive(dtype: Any) -> None:
    dense = np.array([[-0.0, 0.0, np.nan, np.inf, 1e-7]], dtype)
    back = unpack(pack(dense))
    assert same_bits(dense, back)
    assert np.signbit(back[0, 0].astype(np.float32))
    assert pack(dense).values.size == 4  # only +0.0 has no bit set


def test_booleans_round_trip() -> None:
    dense = np.array([[True, False, True]])
    assert same_bits(dense, unpack(pack(dense)))


def test_only_matrices_are_packed() -> None:
    with pytest.raises(InputError, match=r"only matrices.*\(3,\)"):
        pack(np.ones(3))


def a_packed() -> Packed:
    return pack(np.array([[1, 0, 2, 0, 3], [0, 0, 0, 4, 0]], np.float32))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"shape": (2, 9)}, "does not belong"),
        ({"shape": (3, 5)}, "does not belong"),
        ({"shape": (-2, 5)}, "does not belong"),
        ({"shape": (2**40, 2**40)}, "does not belong"),  # would be a terabyte of zeros
        ({"shape": (2, 3)}, "bits beyond column 3"),
        ({"mask": np.zeros((2, 1), np.uint8)}, "mask names 0 weights, 4 values"),
        ({"mask": np.full((2, 1), 255, np.uint8)}, "bits beyond column 5"),
        ({"mask": np.zeros((2, 1), np.int8)}, "does not belong"),
        ({"values": np.ones(3, np.float32)}, "mask names 4 weights, 3 values"),
        ({"values": np.ones((2, 2), np.float32)}, "one-dimensional"),
    ],
)
def test_parts_that_disagree_are_refused(change: dict[str, Any], words: str) -> None:
    good = a_packed()
    parts: dict[str, Any] = {"values": good.values, "mask": good.mask, "shape": good.shape} | change
    with pytest.raises(InputError, match=words):
        unpack(Packed(**parts))


@given(st.integers(0, 15), st.integers(0, 1))
def test_any_flipped_mask_bit_is_noticed(bit: int, row: int) -> None:
    """One changed bit always changes the count or leaves the matrix, so it cannot pass silently."""
    good = a_packed()
    mask = good.mask.copy()
    mask[row, 0] ^= np.uint8(1 << (bit % 8))
    with pytest.raises(InputError):
        unpack(Packed(good.values, mask, good.shape))
