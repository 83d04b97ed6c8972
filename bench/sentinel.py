"""A fixed reference computation between the visits of a benchmark: was the machine disturbed just then?

On every CPU that the engines are kept on, one thread hashes a buffer that fits its first cache (compute) and then reads
one that all of them together pull through the last-level cache (memory). Neither touches a package, so what makes a
reading slow is somebody else. A block of the benchmark is disturbed if a reading around or inside it is beyond a limit
that is fixed before the first block, or if others used the CPUs while it ran. The rule never compares the two sides: it
cannot prefer blocks that favour one of them (`benchmarks/gate_errors.py` shows it by simulation).
"""

import hashlib
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType
from typing import Final, NamedTuple, Self

import numpy as np
import numpy.typing as npt

from tailcut.bench.bandwidth import pinner
from tailcut.bench.machine import l3_bytes

CALIBRATION: Final = 25  # readings before the first block
_PAUSE_S: Final = 0.02
_HASHED: Final = b"\1" * (1 << 14)  # half of a usual first-level cache
_HASHES: Final = 128  # 1 to 5 ms
_MOST_BYTES: Final = 256 << 20
_SLOW: Final = 1.5  # times the quiet reading: a processor's clock moves by less, a second process doubles
_OTHERS: Final = 0.10  # share of the CPUs that others may use during a block
SEEN_SECONDS: Final = 0.4  # below, the kernel's 10 ms ticks are too coarse for a share of CPU time


class Reading(NamedTuple):
    """The slowest thread of each part, in ms."""

    compute: float
    memory: float


class Limits(NamedTuple):
    """What a reading of an undisturbed block stays below, in ms."""

    compute: float
    memory: float


class Watch:
    """The threads of the reference computation, one a CPU. Use as a context manager."""

    def __init__(self, threads: int) -> None:
        size = min(_MOST_BYTES, max(48 << 20, l3_bytes() * 3 // 2)) // 8 // threads * threads
        self._parts = np.split(np.ones(size, np.uint64), threads)  # ones: untouched zero pages share one page
        self._pool = ThreadPoolExecutor(threads, initializer=pinner(threads))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._pool.shutdown()

    def calibrate(self) -> tuple[Reading, ...]:
        """Readings over some tenths of a second."""
        found = []
        for _ in range(CALIBRATION):
            time.sleep(_PAUSE_S)
            found.append(self.read())
        return tuple(found)

    def read(self) -> Reading:
        """One reading; some milliseconds where nobody disturbs."""
        parts = list(self._pool.map(_work, self._parts))
        return Reading(max(part.compute for part in parts), max(part.memory for part in parts))


def _work(part: npt.NDArray[np.uint64]) -> Reading:
    start = time.perf_counter()
    digest = hashlib.sha256()
    for _ in range(_HASHES):
        digest.update(_HASHED)
    middle = time.perf_counter()
    np.bitwise_or.reduce(part)
    return Reading(1e3 * (middle - start), 1e3 * (time.perf_counter() - middle))


def limits(calibration: Sequence[Reading]) -> Limits:
    """From the faster half of the readings before the first block: even a machine in use has quiet moments."""
    quiet = np.percentile(np.asarray(calibration, np.float64), 25, axis=0)
    return Limits(float(_SLOW * quiet[0]), float(_SLOW * quiet[1]))


def disturbed(readings: Sequence[Reading], others: float, visited_s: float, allowed: Limits) -> str:
    """Why a block is disturbed, "" if it is not; `others`: their share of the CPUs over the last `visited_s` of visits."""
    worst = Reading(max(item.compute for item in readings), max(item.memory for item in readings))
    if worst.compute > allowed.compute:
        return f"the reference computation took {worst.compute:.1f} ms, {allowed.compute:.1f} ms is the limit"
    if worst.memory > allowed.memory:
        return f"the reference read took {worst.memory:.1f} ms, {allowed.memory:.1f} ms is the limit"
    if visited_s >= SEEN_SECONDS and others > _OTHERS:
        return f"others used {others:.0%} of the CPUs, {_OTHERS:.0%} is the limit"
    return ""
