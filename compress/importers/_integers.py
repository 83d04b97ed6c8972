"""Integers of other tools as the floats they stand for: (q - zero point) * scale in the scale's own type."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from tailcut.bitmask import Array
from tailcut.errors import InputError


@dataclass(frozen=True, slots=True)
class Scaled:
    """scale [1], [out, 1] or [out, groups]; zero_point of the same shape; g_idx [in]: each column's group."""

    scale: Array
    zero_point: Array | None = None
    g_idx: Array | None = None


def dequantised(q: Array, parts: Scaled, where: str) -> Array:
    """q [out, in] of int8 or float8 -> [out, in] in the scale's type, rounded once per operation as torch does."""
    scale = spread(parts.scale, q.shape, parts.g_idx, where)
    if parts.scale.dtype.kind not in "fV" or not np.isfinite(parts.scale.astype(np.float32)).all():
        raise InputError(f"{where}: its scales are {parts.scale.dtype} or not finite")
    values = q.astype(scale.dtype)
    if parts.zero_point is not None and np.any(parts.zero_point.astype(np.float32)):
        if parts.zero_point.shape != parts.scale.shape:
            raise InputError(f"{where}: zero points of {list(parts.zero_point.shape)} are packed, which is not read")
        values = values - spread(parts.zero_point, q.shape, parts.g_idx, where).astype(scale.dtype)
    return np.asarray(values * scale)


def spread(scale: Array, shape: Sequence[int], g_idx: Array | None, where: str) -> npt.NDArray[Any]:
    """Scales -> what multiplies a matrix of `shape` [out, in]."""
    if scale.size == 1:
        return scale.reshape((1,) * len(shape))
    if len(shape) != 2 or scale.ndim != 2 or scale.shape[0] not in (1, shape[0]) or scale.shape[1] == 0:
        raise InputError(f"{where}: scales of {list(scale.shape)} for a weight of {list(shape)} are not read")
    if scale.shape[1] == 1:
        return scale
    if g_idx is not None:
        if g_idx.shape != (shape[1],) or (
            g_idx.size and not 0 <= int(g_idx.min()) <= int(g_idx.max()) < scale.shape[1]
        ):
            raise InputError(f"{where}: the groups of its columns do not fit {scale.shape[1]} scales a row")
        return scale[:, np.asarray(g_idx, np.int64)]
    if shape[1] % scale.shape[1]:
        raise InputError(f"{where}: {shape[1]} columns do not divide into {scale.shape[1]} groups")
    return np.repeat(scale, shape[1] // scale.shape[1], axis=1)


def unpack_words(words: Array, sizes: Sequence[int], bits: Sequence[int], where: str) -> npt.NDArray[np.int8]:
    """int32 [out, ceil(in / (32 // b))] of offset integers, lowest first -> int8 [out, in]; b is the one of `bits` that fits."""
    if len(sizes) != 2 or words.dtype != np.int32:
        raise InputError(f"{where}: packed integers of {words.dtype} for {list(sizes)} are not read")
    rows, columns = sizes
    fitting = [b for b in bits if words.shape == (rows, -(-columns // (32 // b)))]
    if len(fitting) != 1:
        raise InputError(
            f"{where}: {list(words.shape)} words for {rows} x {columns} weights fit none or several of bits {list(bits)}"
        )
    width = fitting[0]
    shifts = np.arange(0, 32 // width * width, width, dtype=np.uint32)
    fields = (words.view(np.uint32)[:, :, None] >> shifts) & np.uint32((1 << width) - 1)
    flat = fields.reshape(rows, -1)[:, :columns].astype(np.int16) - np.int16(1 << (width - 1))
    return flat.astype(np.int8)
