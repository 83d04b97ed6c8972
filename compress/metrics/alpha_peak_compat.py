"""alpha_peak exactly as the published code chooses the tail, for comparison with published numbers.

The published lower bound is log10(0.95 p), compared with eigenvalues that are *not* logarithms (inherited from
WeightWatcher). Below p = 1.05 it is negative and excludes nothing; the result depends on the matrix's scale.
Also kept: D starts at 1, candidates whose tail is all ties are allowed, the last eigenvalue is skipped. Two
things differ from the published run: eigenvalues come from a float64 Gram matrix instead of a float32 SVD,
and those within rounding error of zero are dropped before.
"""

import math
from typing import Final, Literal

import numpy as np

from tailcut.compress.metrics import Matrix, Needs, Score, Spectrum, TailFit
from tailcut.compress.metrics._tail import best_tail, checked, histogram_peak, score_tail

NEEDS: Final[Needs] = "spectrum"
SIGN: Final[Literal[1, -1]] = 1  # higher alpha = lighter tail = pruned more
LARGEST: Final = math.inf  # the published code does not clamp


def fit(eigenvalues: Spectrum) -> TailFit:
    """Eigenvalues float64 [N], ascending, positive -> the tail that the published search finds."""
    values = checked(eigenvalues)
    peak = histogram_peak(values)
    start = int(np.searchsorted(values, math.log10(0.95 * peak), side="left"))
    stop = int(np.searchsorted(values, 1.5 * peak, side="right"))
    return best_tail(values, start, stop, infinite=True)


def score(matrix: Matrix) -> Score:
    """The alpha of that tail, with details `xmin` (where it begins) and `ks` (its distance)."""
    return score_tail(fit, matrix)
