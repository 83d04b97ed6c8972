"""The frames: what is packed comes back, and nothing else is accepted."""

import io
import json
import struct

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tailcut.bench.workers import wire

values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)


def joined(body: wire.Body, arrays: wire.Arrays | None = None) -> bytes:
    return b"".join(wire.pack(body, arrays))


def read(data: bytes) -> wire.Frame:
    return wire.unpack(io.BytesIO(data).read)


@given(
    st.dictionaries(st.text(max_size=8), values, max_size=4),
    st.sampled_from(wire.DTYPES),
    st.lists(st.integers(0, 4), max_size=4),
)
def test_a_frame_round_trips(body: wire.Body, dtype: str, shape: list[int]) -> None:
    array = np.arange(int(np.prod(shape)), dtype=dtype).reshape(shape)
    got, arrays = read(joined(body, {"x": array}))
    assert got == body
    assert arrays["x"].dtype == array.dtype
    np.testing.assert_array_equal(arrays["x"], array)


@given(st.binary(max_size=200))
def test_random_bytes_are_refused(data: bytes) -> None:
    with pytest.raises((wire.WireError, EOFError)):
        read(data)


@given(st.integers(1, 10_000))
def test_a_truncated_frame_is_refused(cut: int) -> None:
    data = joined({"command": "decode"}, {"x": np.ones(50)})
    with pytest.raises((wire.WireError, EOFError)):
        read(data[: -(cut % (len(data) - 1) + 1)])


@given(st.integers(0, 10_000), st.integers(1, 255))
def test_a_flipped_header_byte_never_crashes(place: int, change: int) -> None:
    data = bytearray(joined({"command": "decode"}, {"x": np.ones(3)}))
    data[place % (len(data) - 24)] ^= change
    try:
        body, arrays = read(bytes(data))
    except (wire.WireError, EOFError):
        return
    assert isinstance(body, dict)
    assert all(isinstance(array, np.ndarray) for array in arrays.values())


def test_an_oversized_header_is_refused_before_it_is_read() -> None:
    with pytest.raises(wire.WireError, match="header of 4294967295 bytes"):
        read(wire.MAGIC + struct.pack("<I", 2**32 - 1))


@pytest.mark.parametrize("shape", [[2**31], [2**20, 2**20], [2**63, 2**63, 2**63]])
def test_an_oversized_payload_is_refused_before_it_is_read(shape: list[int]) -> None:
    header = json.dumps({"body": {}, "arrays": [{"name": "x", "dtype": "float64", "shape": shape}]}).encode()
    with pytest.raises(wire.WireError, match="payload"):
        read(wire.MAGIC + struct.pack("<I", len(header)) + header)


@pytest.mark.parametrize(
    "item",
    [
        {"name": "x", "dtype": "object", "shape": [1]},
        {"name": "x", "dtype": "float32", "shape": [-1]},
        {"name": "x", "dtype": "float32", "shape": [True]},
        {"name": 3, "dtype": "float32", "shape": [1]},
        "x",
    ],
)
def test_an_array_that_is_not_one_is_refused(item: object) -> None:
    header = json.dumps({"body": {}, "arrays": [item]}).encode()
    with pytest.raises(wire.WireError, match="describes no array"):
        read(wire.MAGIC + struct.pack("<I", len(header)) + header + b"\0" * 16)


def test_only_plain_numbers_are_sent() -> None:
    with pytest.raises(wire.WireError, match="dtype object"):
        wire.pack({}, {"x": np.array([object()])})
