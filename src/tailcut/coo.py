"""Coordinates: the values that are not zero and where each lies, as ONNX's `sparse_initializer` stores a tensor.

    values   1-D, the weights whose bits are not all zero, row-major
    indices  int64 [nnz], place in the flattened tensor, strictly ascending ([nnz, rank] is read as well)

An index costs 8 bytes, so this is larger than the dense tensor below 2/3 zeros in float32, 0.8 in 16 bits and 8/9 in
int8. As with the bitmask a weight is zero when its *bit pattern* is, so that -0.0 and NaN survive.
"""

from dataclasses import dataclass
from math import prod
from typing import Final

import numpy as np
import numpy.typing as npt

from tailcut.bitmask import Array, nonzero_bits
from tailcut.errors import InputError

MAX_DENSE_BYTES: Final = (1 << 31) - 1  # ONNX Runtime opens no larger sparse tensor; values do not bound the dense size
_INDEX_BYTES: Final = 8


@dataclass(frozen=True, slots=True)
class Coo:
    """A tensor without its zeros. values [nnz] any dtype, indices int64 [nnz] or [nnz, rank], shape of the dense tensor."""

    values: Array
    indices: npt.NDArray[np.int64]
    shape: tuple[int, ...]


def to_coo(dense: Array) -> Coo:
    """Tensor of any 1, 2, 4 or 8 byte dtype -> its coordinates."""
    kept = np.flatnonzero(nonzero_bits(dense)).astype(np.int64)
    return Coo(dense.reshape(-1)[kept], kept, tuple(int(size) for size in dense.shape))


def from_coo(coo: Coo, name: str = "sparse tensor") -> Array:
    """The exact inverse of `to_coo`; InputError, before memory is taken, on parts that do not belong together."""
    places = _places(coo, name)
    dense = np.zeros(prod(coo.shape), coo.values.dtype)
    dense[places] = coo.values
    return dense.reshape(coo.shape)


def coo_is_smaller(dense: Array) -> bool:
    """Whether coordinates take fewer bytes than the tensor, and no more than a reader opens."""
    kept = int(np.count_nonzero(nonzero_bits(dense)))
    return kept * (dense.dtype.itemsize + _INDEX_BYTES) < dense.nbytes <= MAX_DENSE_BYTES


def _places(coo: Coo, name: str) -> npt.NDArray[np.int64]:
    """Linear indices, checked: the standard asks for int64, in range, each once, in order."""
    count, size = coo.values.size, prod(coo.shape)
    if min(coo.shape, default=0) < 0 or size * coo.values.dtype.itemsize > MAX_DENSE_BYTES:
        raise InputError(f"{name}: a dense size of {list(coo.shape)} is beyond the 2 GiB that a sparse tensor may have")
    if (
        coo.values.ndim != 1
        or coo.indices.dtype != np.int64
        or coo.indices.shape
        not in (
            (count,),
            (count, len(coo.shape)),
        )
    ):
        raise InputError(
            f"{name}: {count} values need int64 indices, one or {len(coo.shape)} each; "
            f"there are {coo.indices.dtype} {list(coo.indices.shape)}"
        )
    if coo.indices.ndim == 2 and count:
        if not ((coo.indices >= 0) & (coo.indices < np.asarray(coo.shape))).all():
            raise InputError(f"{name}: an index lies outside {list(coo.shape)}")
        places = np.asarray(np.ravel_multi_index(tuple(coo.indices.T), coo.shape), np.int64)
    else:
        places = coo.indices.reshape(-1)
    if count and not (int(places[0]) >= 0 and int(places[-1]) < size and bool((np.diff(places) > 0).all())):
        raise InputError(f"{name}: indices must ascend, each once, from 0 to {size - 1}")
    return places
