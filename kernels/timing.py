"""Timing inside the kernel library, for benchmarks: no interpreter between two products.

`stream_read` is the machine's read ceiling at that moment; `time_pool` multiplies with many matrices in turn, so that
no weight is still in a cache when it is read again.
"""

import ctypes
from collections.abc import Mapping, Sequence
from typing import Any, Final

import ml_dtypes
import numpy as np
import numpy.typing as npt

from tailcut.errors import InputError
from tailcut.kernels import library
from tailcut.kernels.library import CpuMatrix, Isa
from tailcut.quantised import Precision, groups

Floats = npt.NDArray[np.float32]
_FLOATS: Final[Mapping[Precision, Any]] = {
    "float32": np.float32,
    "float16": np.float16,
    "bfloat16": ml_dtypes.bfloat16,
}


def random_parts(
    precision: Precision, shape: tuple[int, int], sparsity: float, rng: np.random.Generator
) -> dict[str, Any]:
    """Random values, mask and scales of one matrix [out, in], as CpuMatrix takes them."""
    keep = rng.random(shape, np.float32) >= sparsity
    mask = np.packbits(keep, axis=1, bitorder="little") if sparsity else None
    count = int(keep.sum()) if sparsity else shape[0] * shape[1]
    if precision in _FLOATS:
        values = rng.standard_normal(count, np.float32).astype(_FLOATS[precision])
        return {"values": values, "mask": mask, "scales": None}
    if precision == "int8":
        scales = np.full(shape[0], 0.01, np.float32)
        return {"values": rng.integers(-127, 128, count, np.int8), "mask": mask, "scales": scales}
    nibbles = rng.integers(1, 16, count + count % 2, np.uint8)
    scales = np.full((shape[0], groups(shape[1])), 0.01, np.float32)
    return {"values": nibbles[::2] | nibbles[1::2] << 4, "mask": mask, "scales": scales}


def random_pool(
    precision: Precision, shape: tuple[int, int], sparsity: float, pool_bytes: int, isa: Isa = "auto"
) -> list[CpuMatrix]:
    """Copies of one random matrix, at least two: what is in them does not matter, only that none is cached."""
    parts = random_parts(precision, shape, sparsity, np.random.default_rng(0))
    first = CpuMatrix(shape=shape, isa=isa, **parts)
    copies = max(2, pool_bytes // max(1, first.describe().bytes))
    return [first, *(CpuMatrix(shape=shape, isa=isa, **parts) for _ in range(copies - 1))]


def stream_read(buffer: npt.NDArray[np.uint8], threads: int) -> float:
    """Read `buffer` [bytes] once with `threads` threads -> bytes per second."""
    read = library._loaded(None).tailcut_stream_read
    read.argtypes, read.restype = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int32], ctypes.c_double
    return float(buffer.nbytes / read(buffer.ctypes.data, buffer.nbytes, threads))


def time_pool(pool: Sequence[CpuMatrix], x: Floats, threads: int, calls: int, first: int) -> npt.NDArray[np.float64]:
    """Seconds of `calls` products x [m, in] W^T with pool[first], pool[first + 1], …: float64 [calls]."""
    rows, columns = pool[0].describe().shape
    if x.dtype != np.float32 or not x.flags.c_contiguous or x.shape[-1] != columns:
        raise InputError(f"x must be contiguous float32 [m, {columns}], is {x.dtype} {list(x.shape)}")
    handles = (ctypes.c_void_p * len(pool))(*(matrix._handle for matrix in pool))
    y = np.empty((x.shape[0], rows), np.float32)
    out = np.empty(calls, np.float64)
    run = library._loaded(None).tailcut_time_pool
    pointer, number = ctypes.c_void_p, ctypes.c_int32
    run.argtypes = [pointer, number, number, pointer, ctypes.c_int64, pointer, number, number, pointer]
    ended = run(
        handles, len(pool), first % len(pool), x.ctypes.data, len(x), y.ctypes.data, threads, calls, out.ctypes.data
    )
    if not ended:
        raise InputError(f"not enough memory to multiply {len(x)} rows")
    return out
