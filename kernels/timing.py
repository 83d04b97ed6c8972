"""Timing inside the kernel library, for benchmarks: no interpreter between two products.

`stream_read` is the machine's read ceiling at that moment; `time_pool` multiplies with many matrices in turn, so that
no weight is still in a cache when it is read again.
"""

import ctypes
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from tailcut.errors import InputError
from tailcut.kernels import library
from tailcut.kernels.library import CpuMatrix

Floats = npt.NDArray[np.float32]


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
