"""Round to nearest: a float matrix becomes small integers and scales, with the error measured.

    int8   scale = max |w| of the row / 127
    int4   scale = max |w| of the row's group of 128 columns / 7

Symmetric, so a pruned zero stays exactly zero and needs no byte. Nothing is calibrated: the error is that of the plain
method, and is recorded for every matrix. float16 and bfloat16 are here too, as the simplest way to lose bits.
"""

from collections.abc import Iterable
from typing import Final, get_args

import ml_dtypes
import numpy as np
import numpy.typing as npt

from tailcut.bitmask import Array
from tailcut.errors import InputError
from tailcut.quantised import GROUP, Integers, Precision, Scales, dequantise, groups, spread

Matrix = npt.NDArray[np.float32]
HALVES: Final = {"float16": np.dtype(np.float16), "bfloat16": np.dtype(ml_dtypes.bfloat16)}
_LARGEST: Final = {"int8": 127, "int4": 7}


def check_precision(name: str, allowed: Iterable[str] = get_args(Precision), what: str = "weights") -> Precision:
    """The precision of that name, or an InputError that lists the allowed ones."""
    known = tuple(allowed)
    if name not in known:
        raise InputError(f"unknown {what} {name!r}; choose one of {', '.join(known)}")
    return name  # type: ignore[return-value]  # one of the Literal's values


def quantise(weight: Matrix, precision: Precision) -> tuple[Integers, Scales]:
    """weight [out, in] -> q int8 [out, in] and scales [out] (int8) or [out, ceil(in / 128)] (int4)."""
    if not np.isfinite(weight).all():
        raise InputError(f"{precision}: NaN and infinite weights cannot be quantised")
    largest = _LARGEST[precision]
    scales = _usable((_row_maxima(weight) if precision == "int8" else _group_maxima(weight)) / np.float32(largest))
    steps = spread(np.where(scales > 0, scales, np.float32(1)), weight.shape[1])
    return np.clip(np.rint(weight / steps), -largest, largest).astype(np.int8), scales


def to_half(weight: Matrix, precision: str) -> Array:
    """weight rounded to float16 or bfloat16; InputError where it does not fit."""
    with np.errstate(over="ignore"):
        half = weight.astype(HALVES[precision])
    if not np.isfinite(half).all():
        raise InputError(f"{precision}: a weight of size {float(np.abs(weight).max()):.3g} does not fit; use bfloat16")
    return half


def round_trip(weight: Matrix, precision: Precision) -> Matrix:
    """What comes back of weight [out, in] when it is stored at a precision."""
    if precision == "float32":
        return weight
    if precision in HALVES:
        return to_half(weight, precision).astype(np.float32)
    return dequantise(*quantise(weight, precision))


def _row_maxima(weight: Matrix) -> Scales:
    return np.asarray(np.abs(weight).max(axis=1, initial=0), np.float32)


def _group_maxima(weight: Matrix) -> Scales:
    rows, columns = weight.shape
    padded = np.zeros((rows, groups(columns) * GROUP), np.float32)
    padded[:, :columns] = np.abs(weight)
    return np.asarray(padded.reshape(rows, -1, GROUP).max(axis=2, initial=0), np.float32)


def _usable(scales: Scales) -> Scales:
    """A subnormal scale would overflow when it divides: such a row counts as zero."""
    return np.where(scales >= np.finfo(np.float32).tiny, scales, np.float32(0))
