"""alpha with the tail beginning near the peak of the spectrum: AlphaPruning's default ("Fix-finger").

The peak p is the left edge of the fullest of 100 bins over log10(l). Every eigenvalue within [0.95 p, 1.5 p]
may begin the tail; the one with the least KS distance does. Both bounds scale with the spectrum, so that
multiplying a matrix by a constant changes nothing. `alpha_peak_compat` has the published code's lower bound.
"""

from typing import Final, Literal

import numpy as np

from tailcut.compress.metrics import Matrix, Needs, Score, Spectrum, TailFit
from tailcut.compress.metrics._tail import LARGEST_ALPHA, best_tail, checked, histogram_peak, score_tail

NEEDS: Final[Needs] = "spectrum"
SIGN: Final[Literal[1, -1]] = 1  # higher alpha = lighter tail = pruned more
LARGEST: Final = LARGEST_ALPHA


def fit(eigenvalues: Spectrum) -> TailFit:
    """Eigenvalues float64 [N], ascending, positive -> the best tail beginning near the histogram's peak."""
    values = checked(eigenvalues)
    peak = histogram_peak(values)
    start = int(np.searchsorted(values, 0.95 * peak, side="left"))
    stop = int(np.searchsorted(values, 1.5 * peak, side="right"))
    return best_tail(values, start, stop)


def score(matrix: Matrix) -> Score:
    """The alpha of that tail, with details `xmin` (where it begins) and `ks` (its distance)."""
    return score_tail(fit, matrix)
