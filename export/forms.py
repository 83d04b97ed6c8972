"""One matrix in each of its stored forms: the op that multiplies by it and that op's initializers.

    float32         MatMul with the matrix transposed [in, out], or SparseMatMul when that is smaller
    float16, bfloat16   SparseMatMul always: MatMul has no mixed types, and the mask costs a sixteenth at most
    int8, int4      MatMulInt8 / MatMulInt4, or SparseMatMulInt8 / SparseMatMulInt4 when that is smaller

The mask of a quantised matrix is that of q: a weight that rounds to zero is not stored either.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import numpy.typing as npt

from tailcut.bitmask import Array, Packed, nonzero_bits, pack
from tailcut.errors import InputError
from tailcut.export.functions import DENSE_INT4, DENSE_INT8, SPARSE_INT4, SPARSE_INT8, SPARSE_MATMUL
from tailcut.export.quantise import HALVES, Matrix, quantise, to_half
from tailcut.kernels.stored import DOMAIN
from tailcut.quantised import Integers, Precision, Scales, dequantise, pack_nibbles

Layout = Literal["bitmask", "dense"]


@dataclass(frozen=True, slots=True)
class Form:
    """An op and its inputs after x by part name, in order; W [out, in]."""

    op: str
    parts: Mapping[str, Array]

    @property
    def domain(self) -> str:
        return "" if self.op == "MatMul" else DOMAIN

    def names(self, module: str) -> tuple[str, ...]:
        """Initializer names of the parts: `<module>.weight` and `<module>.weight.<part>`."""
        return tuple(f"{module}.weight" if part == "weight" else f"{module}.weight.{part}" for part in self.parts)


@dataclass(frozen=True, slots=True)
class Loss:
    """What storing changed, row by row: weights that are not zero, squared error, squared norm of the original."""

    kept: npt.NDArray[np.int64]
    error: npt.NDArray[np.float64]
    norm: npt.NDArray[np.float64]


def check_layout(layout: str, others: tuple[str, ...] = ()) -> Layout:
    """The layout of that name, or an InputError that lists them, and `others` that the caller has as well."""
    for known in get_args(Layout):
        if layout == known:
            return known  # type: ignore[no-any-return]  # get_args loses the Literal's type
    raise InputError(f"unknown layout {layout!r}; choose one of {', '.join((*get_args(Layout), *others))}")


def encode(matrix: Matrix, layout: Layout, precision: Precision) -> tuple[Form, Loss]:
    """Store matrix float32 [out, in] at a precision, in the smallest form the layout allows."""
    if precision == "float32":
        return float_form(matrix, layout), _loss(matrix, matrix)
    if precision in HALVES:
        half = to_half(matrix, precision)
        return half_form(half, layout), _loss(matrix, half.astype(np.float32))
    q, scales = quantise(matrix, "int8" if precision == "int8" else "int4")
    return integer_form(q, scales, layout), rounding_loss(matrix, q, scales)


def rounding_loss(matrix: Matrix, q: Integers, scales: Scales) -> Loss:
    """What storing matrix [out, in] as integers changed."""
    return _loss(matrix, dequantise(q, scales))


def float_form(matrix: Array, layout: Layout) -> Form:
    """float32 [out, in]."""
    if layout == "bitmask" and packed_is_smaller(matrix):
        return _sparse(pack(matrix))
    return Form("MatMul", {"weight": matrix.T})


def half_form(matrix: Array, layout: Layout) -> Form:
    """float16 or bfloat16 [out, in]."""
    if layout == "dense":
        raise InputError(f"{matrix.dtype.name} weights exist only in the bitmask layout; choose it, or float32 weights")
    return _sparse(pack(matrix))


def integer_form(q: Integers, scales: Scales, layout: Layout) -> Form:
    """q int8 [out, in]; scales [out] make it int8, [out, groups] int4."""
    narrow = scales.ndim == 2
    shape = np.asarray(q.shape, np.int64)
    if layout == "bitmask":
        kept = int(np.count_nonzero(q))
        rows, columns = q.shape
        stored, whole = (-(-kept // 2), rows * -(-columns // 2)) if narrow else (kept, q.size)
        if stored + rows * ((columns + 7) // 8) < whole:
            packed = pack(q)
            values = pack_nibbles(np.asarray(packed.values, np.int8)) if narrow else packed.values
            parts = {"values": values, "mask": packed.mask, "scales": scales, "shape": shape}
            return Form(SPARSE_INT4 if narrow else SPARSE_INT8, parts)
    if narrow:
        return Form(DENSE_INT4, {"weight": pack_nibbles(q), "scales": scales, "shape": shape})
    return Form(DENSE_INT8, {"weight": q, "scales": scales})


def packed_is_smaller(matrix: Array) -> bool:
    """Whether mask and values of a matrix [out, in] take fewer bytes than the matrix."""
    rows, columns = matrix.shape
    kept = int(np.count_nonzero(nonzero_bits(matrix)))
    return bool(kept * matrix.dtype.itemsize + rows * ((columns + 7) // 8) < matrix.nbytes)


def _sparse(packed: Packed) -> Form:
    shape = np.asarray(packed.shape, np.int64)
    return Form(SPARSE_MATMUL, {"values": packed.values, "mask": packed.mask, "shape": shape})


def _loss(matrix: Matrix, stored: Matrix) -> Loss:
    kept = np.count_nonzero(stored, axis=1)
    norm = np.einsum("oi,oi->o", matrix, matrix, dtype=np.float64)
    if stored is matrix:
        return Loss(kept, np.zeros(len(matrix)), norm)
    gap = stored - matrix
    return Loss(kept, np.einsum("oi,oi->o", gap, gap, dtype=np.float64), norm)
