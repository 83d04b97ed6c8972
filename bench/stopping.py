"""When a benchmark has seen enough, with error rates that hold although it looks after every block.

Looking again and again until an interval is clear of a limit makes 95 % intervals wrong far more often than one time in
twenty. Every look from the first to the last possible one therefore uses a stricter confidence, the same at each (a
Pocock design: Jennison and Turnbull, Group Sequential Methods, 2000, chapters 2 and 9, repeated confidence intervals),
such that all intervals of a session hold together with the stated one. The stricter level comes from simulated paths
of Student's t over normal blocks, with a fixed seed; `benchmarks/gate_errors.py` checks the result under noise
as it is measured, and on real runs.

Because the intervals hold together at every look, any rule may end the session at any of them.
"""

from functools import cache

import numpy as np

from tailcut.bench.stats import Floats, student_inside
from tailcut.results import Ratio, Stopping

_PATHS = 50_000  # 5 % of them decide the level: known within 2 % of itself
_SEED = 2000


@cache
def look_confidence(confidence: float, first: int, last: int) -> float:
    """The confidence of each interval, so that those after `first`, `first` + 1, ... `last` blocks hold together."""
    rng = np.random.default_rng(_SEED)
    total, squares, worst = np.zeros(_PATHS), np.zeros(_PATHS), np.zeros(_PATHS)
    for count in range(1, last + 1):
        block = rng.standard_normal(_PATHS)
        total += block
        squares += block * block
        if count >= first:
            worst = np.maximum(worst, _inside(total, squares, count))
    return float(np.quantile(worst, confidence))


def _inside(total: Floats, squares: Floats, count: int) -> Floats:
    """For each path how central Student's interval must be to reach 0: P(|T| < t) of its t after `count` blocks."""
    spread = np.sqrt(np.maximum(squares - total * total / count, 1e-300) / (count - 1))
    angles, inside = student_inside(count - 1)
    reached = np.arctan(np.abs(total) / (np.sqrt(count * (count - 1)) * spread))
    return np.asarray(np.interp(reached, angles, inside), np.float64)


def decided(stopping: Stopping, ratio: Ratio) -> str:
    """Why this look ends the session; "" if it does not."""
    limit, precision = stopping.at_least, stopping.precision
    if limit is not None and not ratio.low < limit <= ratio.high:
        return f"the interval is clear of {limit:g}"
    half = (ratio.high - ratio.low) / 2 / ratio.value
    if precision is not None and half <= precision:
        return f"the interval is narrow: {half:.1%} to either side"
    return ""
