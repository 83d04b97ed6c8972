"""The machine's read bandwidth, measured: the ceiling every memory-bound decode step is compared with.

A buffer far larger than the last-level cache is read by 1..T threads, each thread pinned, with several
reductions; the best pass counts, because anything that disturbs a pass only makes it slower. numpy's reductions
release the GIL. One core rarely reaches the memory's own limit, so the figure belongs to a thread count.
"""

import os
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import numpy.typing as npt
import psutil

from tailcut.bench.machine import l3_bytes, pinned_cpus
from tailcut.progress import Reporter, silent
from tailcut.results import BandwidthPoint

Bytes = npt.NDArray[np.uint8]
_GIB = 1 << 30
_CHUNKS = 64

# Different bottlenecks: a wide compare, a wide logic operation, a multiply-add. Which is best depends on the core.
_READERS: tuple[Callable[[Bytes], object], ...] = (
    np.max,
    lambda part: np.bitwise_or.reduce(part.view(np.uint64)),
    lambda part: np.max(part.view(np.int64)),
)


def measure_bandwidth(threads: int, *, passes: int = 4, report: Reporter = silent) -> tuple[BandwidthPoint, ...]:
    """One point a thread count from 1 to `threads` (powers of two and `threads` itself)."""
    buffer = np.ones(_buffer_bytes(), np.uint8)  # ones, not zeros: untouched zero pages share one physical page
    counts = sorted({count for count in (1, 2, 4, 8, 16, 32, 64, 128) if count < threads} | {threads})
    points = []
    for done, count in enumerate(counts, 1):
        points.append(_point(buffer, count, passes))
        report("bandwidth", done, len(counts), f"{count} threads: {points[-1].best_gb_per_s:.1f} GB/s")
    return tuple(points)


def best_of(*measurements: Sequence[BandwidthPoint]) -> tuple[BandwidthPoint, ...]:
    """Several measurements of the same thread counts as one: all samples, the best of them."""
    merged = []
    for points in zip(*measurements, strict=True):
        samples = tuple(sample for point in points for sample in point.samples_gb_per_s)
        merged.append(BandwidthPoint(points[0].threads, max(point.best_gb_per_s for point in points), samples))
    return tuple(merged)


def _buffer_bytes() -> int:
    """At least 1 GiB and 8 times the last-level cache, but never more than a quarter of the free memory."""
    wanted = max(_GIB, 8 * l3_bytes())
    return int(min(wanted, psutil.virtual_memory().available // 4)) // (_CHUNKS * 64) * (_CHUNKS * 64)


def _point(buffer: Bytes, threads: int, passes: int) -> BandwidthPoint:
    parts = np.split(buffer, _CHUNKS)
    with ThreadPoolExecutor(threads, initializer=pinner(threads)) as pool:
        samples = [_pass(pool, parts, reader) for reader in _READERS for _ in range(passes)]
    return BandwidthPoint(threads, max(samples), tuple(samples))


class Stream:
    """A read of a buffer far beyond the caches, repeated between measurements: was the machine quiet just then?"""

    def __init__(self, threads: int, size_bytes: int = _GIB // 2) -> None:
        self._parts = np.split(np.ones(size_bytes // (_CHUNKS * 64) * (_CHUNKS * 64), np.uint8), _CHUNKS)
        self._pool = ThreadPoolExecutor(threads, initializer=pinner(threads))

    def gb_per_s(self) -> float:
        """The best of one pass a reader."""
        return max(_pass(self._pool, self._parts, reader) for reader in _READERS)


def pinner(threads: int) -> Callable[[], None]:
    """For each thread of a pool in turn: keep it on a CPU of its own."""
    cpus = iter(pinned_cpus(threads))

    def pin() -> None:
        if hasattr(os, "sched_setaffinity"):
            os.sched_setaffinity(0, {next(cpus, pinned_cpus(1)[0])})

    return pin


def _pass(pool: ThreadPoolExecutor, parts: Sequence[Bytes], reader: Callable[[Bytes], object]) -> float:
    began = time.perf_counter()
    for _ in pool.map(reader, parts):
        pass
    return sum(part.nbytes for part in parts) / (time.perf_counter() - began) / 1e9
