"""Room for expanded matrices that does not stay in memory: an unlinked temporary file, mapped.

ONNX Runtime copies each weight into its own packed form and never reads the original again, but holds on to it as
long as the session lives. In ordinary memory that would double a model; pages of a mapped file can be given back
(`release`) and would be read again if anybody asked.
"""

import ctypes
import mmap
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from tailcut.files import full_disk_is_clear

_PAGE: Final = mmap.PAGESIZE


class Arena:
    """One mapped temporary file that holds arrays of known shapes; it vanishes with the last array."""

    def __init__(self, shapes: Sequence[tuple[tuple[int, ...], np.dtype[Any]]]) -> None:
        sizes = [int(np.prod(shape, dtype=np.int64)) * dtype.itemsize for shape, dtype in shapes]
        starts = np.concatenate([[0], np.cumsum([-(-size // _PAGE) * _PAGE for size in sizes], dtype=np.int64)])
        total = max(int(starts[-1]), _PAGE)
        folder = Path(tempfile.gettempdir())
        with tempfile.TemporaryFile(dir=folder) as stream:
            with full_disk_is_clear(folder / "expanded weights"):
                os.posix_fallocate(stream.fileno(), 0, total)  # a full disk is an error now, not a crash later
            self._map = mmap.mmap(stream.fileno(), total)
        self.arrays: list[npt.NDArray[Any]] = [
            np.frombuffer(self._map, dtype, size // dtype.itemsize, int(start)).reshape(shape)
            for (shape, dtype), size, start in zip(shapes, sizes, starts, strict=False)
        ]

    def release(self) -> None:
        """Give the pages back; their content stays in the file."""
        self._map.flush()
        self._map.madvise(mmap.MADV_DONTNEED)
        _trim_heap()


def _trim_heap() -> None:
    """Return what numpy's temporaries left in the C heap (glibc keeps it; other C libraries lack the call)."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
