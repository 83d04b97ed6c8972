"""One sparse format for unstructured and every N:M: the non-zero values in row order and one bit per weight.

    values  1-D, the weights whose bits are not all zero, row-major
    mask    uint8 [rows, ceil(columns / 8)], bit j of byte b of a row is column 8 b + j; padding bits are 0

Bits per weight = 1 + density * b. A weight counts as zero when its *bit pattern* is zero, so that -0.0 and
NaN survive and the round trip is exact. The layout equals compressed-tensors' `sparse-bitmask`, and its four
tensor names are used on disk: `<w>.compressed`, `<w>.bitmask`, `<w>.row_offsets`, `<w>.shape`.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from tailcut.errors import InputError

Array = npt.NDArray[np.generic]
_UNSIGNED = {1: np.uint8, 2: np.uint16, 4: np.uint32, 8: np.uint64}


@dataclass(frozen=True, slots=True)
class Packed:
    """A matrix without its zeros. values [nnz] any dtype, mask uint8 [rows, ceil(columns/8)], shape (rows, columns)."""

    values: Array
    mask: npt.NDArray[np.uint8]
    shape: tuple[int, int]

    @property
    def row_offsets(self) -> npt.NDArray[np.int64]:
        """Where each row's values begin, int64 [rows]."""
        counts = np.bitwise_count(self.mask).sum(axis=1, dtype=np.int64)
        return np.concatenate([np.zeros(1, np.int64), np.cumsum(counts)])[:-1]


def nonzero_bits(dense: Array) -> npt.NDArray[np.bool_]:
    """True where the stored bit pattern is not all zero; same shape as `dense`."""
    contiguous = np.ascontiguousarray(dense)
    if contiguous.dtype == np.bool_:
        return np.asarray(contiguous, np.bool_)
    bits = contiguous.view(_UNSIGNED[contiguous.dtype.itemsize])
    return np.asarray(bits != 0, np.bool_)


def pack(dense: Array) -> Packed:
    """Matrix [rows, columns] of any 1, 2, 4 or 8 byte dtype -> Packed."""
    if dense.ndim != 2:
        raise InputError(f"only matrices are packed, got shape {dense.shape}")
    keep = nonzero_bits(dense)
    mask = np.packbits(keep, axis=1, bitorder="little")
    return Packed(dense[keep], mask, (int(dense.shape[0]), int(dense.shape[1])))


def unpack(packed: Packed) -> Array:
    """The exact inverse of `pack`; refuses inconsistent parts before it allocates."""
    validate(packed)
    rows, columns = packed.shape
    keep = np.unpackbits(packed.mask, axis=1, count=columns, bitorder="little").astype(bool)
    dense = np.zeros((rows, columns), packed.values.dtype)
    dense[keep] = packed.values
    return dense


def validate(packed: Packed, name: str = "packed matrix") -> None:
    """InputError unless shape, mask size, padding bits and popcount agree with the number of values.

    A mask byte stands for eight weights, so an honest file bounds its own expansion; these checks
    make a dishonest one fail before memory is taken.
    """
    rows, columns = packed.shape
    width = (columns + 7) // 8
    if rows < 0 or columns < 0 or packed.mask.dtype != np.uint8 or packed.mask.shape != (rows, width):
        raise InputError(f"{name}: mask of shape {packed.mask.shape} does not belong to a {rows} x {columns} matrix")
    if packed.values.ndim != 1:
        raise InputError(f"{name}: values must be one-dimensional, got shape {packed.values.shape}")
    spare = width * 8 - columns
    if spare and rows and np.any(packed.mask[:, -1] >> np.uint8(8 - spare)):
        raise InputError(f"{name}: mask has bits beyond column {columns}")
    count = int(np.bitwise_count(packed.mask).sum(dtype=np.int64))
    if count != packed.values.size:
        raise InputError(f"{name}: mask names {count} weights, {packed.values.size} values are stored")
