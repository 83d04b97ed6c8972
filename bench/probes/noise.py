"""A few seconds of always the same work: how much its time moves, and what that leaves a benchmark to see.

The same read of memory is timed again and again and its samples are dealt out to two sides in the order of a benchmark
(A, B, B, A). Both sides are the same, so the interval of their ratio is noise alone; with as many seconds as a benchmark has
it would shrink by the square root, which is what is foretold. Slow changes of the machine (heat, neighbours that come and
go) do not shrink so: it is a lower bound.
"""

import math
import time
from typing import Final

import numpy as np
import numpy.typing as npt

from tailcut.bench.probes import Finding, Group, System
from tailcut.bench.stats import median_ratio

TITLE: Final = "noise"
GROUP: Final[Group] = "quiet"
MEASURES: Final = True
_SECONDS: Final = 4.0
_BYTES: Final = 32 << 20
_BLOCKS: Final = 12
_BENCH_S: Final = 60.0
_NOISY: Final = 0.02  # half the interval: a speedup of 1.05 is then hard to tell from none


def probe(system: System) -> Finding:
    times = samples(_SECONDS)
    half = interval_after(times, _BENCH_S)
    low, middle, high = (float(value) for value in np.percentile(times, (10, 50, 90)))
    spread = (high - low) / middle
    facts = {"samples": times.size, "median_ms": middle, "spread": spread, "half_interval_60_s": half}
    sentence = (
        f"the same work takes {low:.2f} ms (10th percentile) to {high:.2f} ms (90th), {spread:.0%} of its median apart: "
        f"60 s of a benchmark tell a ratio to about ±{half:.1%} at best"
    )
    if half > _NOISY:
        advice = (
            "Measure longer, stop what runs beside it, or move to a quieter machine; where that is not enough the gate says "
            "inconclusive."
        )
        return Finding("hint", sentence, advice, facts)
    return Finding("good", sentence, "", facts)


def samples(seconds: float) -> npt.NDArray[np.float64]:
    """Milliseconds of reading 32 MiB, again and again; at least eight for each block."""
    buffer = np.ones(_BYTES // 8, np.uint64)  # ones: untouched zero pages share one page
    found: list[float] = []
    until = time.perf_counter() + seconds
    while time.perf_counter() < until or len(found) < 8 * _BLOCKS:
        began = time.perf_counter()
        np.bitwise_or.reduce(buffer)
        found.append(1e3 * (time.perf_counter() - began))
    return np.asarray(found)


def interval_after(times: npt.NDArray[np.float64], seconds: float) -> float:
    """Half the 95 % interval of A against A after so many seconds, as a share; times in ms, eight a block or more."""
    each = times.size // (4 * _BLOCKS)
    blocks = times[: 4 * each * _BLOCKS].reshape(_BLOCKS, 4, each)
    outer, inner = (blocks[:, pair].reshape(_BLOCKS, -1).tolist() for pair in ((0, 3), (1, 2)))
    ratio = median_ratio(outer, inner)
    half = (ratio.high - ratio.low) / 2 / ratio.value
    return half * math.sqrt(min(1.0, float(times.sum()) / 1e3 / seconds))
