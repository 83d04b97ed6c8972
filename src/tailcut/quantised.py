"""Integer weights and their scales: W = q * scale, and how 4-bit values lie in bytes.

    int8   q in -127..127, one scale a row                       scales float32 [out]
    int4   q in -7..7, one scale a row and group of 128 columns  scales float32 [out, ceil(in / 128)]

A 4-bit value is stored as q + 8, two a byte, low half first. Padding holds 8, which is q = 0. Values of 3 bits (-3..3)
and 2 bits (-1..1) are stored as int4: they take no fewer bytes. All grids are symmetric, so zero is exactly zero.
"""

from collections.abc import Mapping
from typing import Final, Literal

import numpy as np
import numpy.typing as npt

from tailcut.errors import InputError

Precision = Literal["float32", "float16", "bfloat16", "int8", "int4"]
CachePrecision = Literal["float32", "float16"]  # of the keys and values that fused.onnx keeps
HeadPrecision = Literal["float32", "int8", "int4"]  # what may be asked for; float16 and bfloat16 follow the weights
GROUP: Final = 128  # columns that share an int4 scale
LARGEST: Final[Mapping[int, int]] = {8: 127, 4: 7, 3: 3, 2: 1}  # bits -> the largest |q|
_ZERO: Final = 8  # the nibble of q = 0

Bytes = npt.NDArray[np.uint8]
Integers = npt.NDArray[np.int8]
Scales = npt.NDArray[np.float32]


def groups(columns: int) -> int:
    """Scales that a row of int4 weights has."""
    return -(-columns // GROUP)


def scales_shape(bits: int, shape: tuple[int, int]) -> tuple[int, ...]:
    """Shape of the scales of a matrix [out, in]: one a row at 8 bits, one a row and group below."""
    return (shape[0],) if bits == 8 else (shape[0], groups(shape[1]))


def container(bits: int) -> Literal["int8", "int4"]:
    """The precision that a package stores integers of so many bits at."""
    return "int8" if bits == 8 else "int4"


def pack_nibbles(values: Integers) -> Bytes:
    """q int8 [..., n] in -8..7 -> uint8 [..., ceil(n / 2)]."""
    odd = values.shape[-1] % 2
    stored = np.pad(values, [(0, 0)] * (values.ndim - 1) + [(0, odd)]).view(np.uint8) + np.uint8(_ZERO)
    return np.asarray(stored[..., 0::2] | stored[..., 1::2] << np.uint8(4), np.uint8)


def unpack_nibbles(stored: Bytes, count: int) -> Integers:
    """uint8 [..., ceil(count / 2)] -> q int8 [..., count], the inverse of `pack_nibbles`."""
    if stored.shape[-1] != (count + 1) // 2:
        raise InputError(f"{count} 4-bit values need {(count + 1) // 2} bytes, {stored.shape[-1]} are stored")
    halves = np.stack([stored & np.uint8(15), stored >> np.uint8(4)], axis=-1)
    halves = halves.reshape(*stored.shape[:-1], 2 * stored.shape[-1])
    return np.asarray((halves[..., :count] - np.uint8(_ZERO)).view(np.int8), np.int8)


def spread(scales: Scales, columns: int) -> Scales:
    """Scales [out] or [out, groups] -> one that multiplies [out, columns]."""
    if scales.ndim == 1:
        return scales[:, None]
    return np.repeat(scales, GROUP, axis=1)[:, :columns]


def dequantise(q: Integers, scales: Scales) -> npt.NDArray[np.float32]:
    """q int8 [out, in] and scales [out] or [out, groups] -> float32 [out, in]."""
    return np.multiply(q, spread(scales, q.shape[1]), dtype=np.float32)
