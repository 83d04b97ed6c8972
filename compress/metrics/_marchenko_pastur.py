"""The Marchenko-Pastur law: eigenvalues of W W^T / n for W [m, n] with independent entries of variance 1.

With q = m / n <= 1 the density on [(1 - sqrt q)^2, (1 + sqrt q)^2] is sqrt((b - x)(x - a)) / (2 pi q x).
"""

import math
from functools import lru_cache

import numpy as np

_STEPS = 1 << 14


def edges(q: float) -> tuple[float, float]:
    """Where the bulk begins and ends, for q in (0, 1]."""
    return (1.0 - math.sqrt(q)) ** 2, (1.0 + math.sqrt(q)) ** 2


@lru_cache(maxsize=64)
def median(q: float) -> float:
    """Median of the law for q in (0, 1], to about 1e-7.

    x = centre - radius cos(t) takes the square roots at the edges out of the integral: dF = radius^2 sin^2(t) /
    (2 pi q x) dt, summed at midpoints of [0, pi].
    """
    low, high = edges(q)
    angles = (np.arange(_STEPS) + 0.5) * (math.pi / _STEPS)
    radius = (high - low) / 2.0
    places = (low + high) / 2.0 - radius * np.cos(angles)
    masses = (radius * np.sin(angles)) ** 2 / places
    # F at the right end of every step; q = 1 has its x = 0 singularity cancelled by the sine
    ends = np.cumsum(masses) / masses.sum()
    angle = np.interp(0.5, ends, (np.arange(_STEPS) + 1.0) * (math.pi / _STEPS))
    return float((low + high) / 2.0 - radius * math.cos(angle))
