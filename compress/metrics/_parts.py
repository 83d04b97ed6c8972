"""What metric files share: the parts of a matrix they may rely on, importance in pieces, quantile curves."""

from collections.abc import Iterator
from typing import Final

import numpy as np

from tailcut.bitmask import Array
from tailcut.compress.metrics import Floats, Matrix, Spectrum
from tailcut.errors import InputError

POINTS: Final = 1025  # of a curve: quantiles at 0, 1/1024, …, 1
_CHUNK_ELEMENTS: Final = 1 << 22  # 16 MB of float32 a temporary


def spectrum_of(matrix: Matrix, least: int = 1) -> Spectrum:
    """The significant eigenvalues; InputError if there are fewer than `least`, ValueError if NEEDS was broken."""
    if matrix.spectrum is None:
        raise ValueError("a spectrum metric needs `spectrum` (NEEDS = 'spectrum')")
    if matrix.spectrum.size < least:
        raise InputError(
            f"needs at least {least} eigenvalues above rounding error, got {matrix.spectrum.size}; the matrix "
            f"{matrix.shape} is zero or of very low rank and cannot be measured"
        )
    return matrix.spectrum


def weight_of(matrix: Matrix) -> Array:
    """The weight [out, in]; ValueError where the caller broke NEEDS."""
    if matrix.weight is None:
        raise ValueError("this metric needs `weight` (NEEDS = 'weight', 'inputs' or 'block')")
    return matrix.weight


def input_norms(matrix: Matrix) -> Spectrum:
    """L2 norms of the inputs, float64 [in]; ValueError where the caller broke NEEDS."""
    if matrix.energy is None:
        raise ValueError("this metric needs `energy` (NEEDS = 'inputs' or 'block')")
    return np.asarray(np.sqrt(matrix.energy), np.float64)


def magnitudes(matrix: Matrix) -> Iterator[Floats]:
    """|W| by groups of rows, float32."""
    weight = weight_of(matrix)
    rows = max(1, _CHUNK_ELEMENTS // max(1, weight.shape[1]))
    for start in range(0, weight.shape[0], rows):
        yield np.abs(weight[start : start + rows].astype(np.float32))


def importances(matrix: Matrix) -> Iterator[Floats]:
    """Wanda's |W_ij| ||x_j|| by groups of rows, float32."""
    norms = input_norms(matrix).astype(np.float32)
    for part in magnitudes(matrix):
        yield np.multiply(part, norms, out=part)


def gathered(parts: Iterator[Floats], count: int) -> Floats:
    """`count` numbers that come in parts, in one row, float32 [count]."""
    values = np.empty(count, np.float32)
    start = 0
    for part in parts:
        values[start : start + part.size] = part.reshape(-1)
        start += part.size
    return values


def curve(values: Floats) -> tuple[float, ...]:
    """Quantiles at 0, 1/1024, …, 1 of non-negative numbers [count], which are sorted in place; interpolated."""
    values.sort()
    places = np.linspace(0.0, values.size - 1.0, POINTS)
    lower = places.astype(np.int64)
    upper = np.minimum(lower + 1, values.size - 1)
    low, high = values[lower].astype(np.float64), values[upper].astype(np.float64)
    # the shortest text that names a float32 is half as long in JSON as that of the same number in float64
    points = (low + (high - low) * (places - lower)).astype(np.float32)
    return tuple(float(str(point)) for point in np.maximum.accumulate(points))


def finite(value: float, what: str) -> float:
    """The value, or InputError when it overflowed or is undefined."""
    if not np.isfinite(value):
        raise InputError(f"{what} is {value}; measure another metric")
    return float(value)
