"""alpha with the tail beginning wherever the power law fits best (Clauset, Shalizi and Newman, 2009).

Every eigenvalue but the last may begin the tail; the one with the least KS distance does. WeightWatcher's
`alpha`, TempBalance's `goodness-of-fit`.
"""

from typing import Final, Literal

from tailcut.compress.metrics import Matrix, Needs, Score, Spectrum, TailFit
from tailcut.compress.metrics._tail import LARGEST_ALPHA, best_tail, checked, score_tail

NEEDS: Final[Needs] = "spectrum"
SIGN: Final[Literal[1, -1]] = 1  # higher alpha = lighter tail = pruned more
LARGEST: Final = LARGEST_ALPHA


def fit(eigenvalues: Spectrum) -> TailFit:
    """Eigenvalues float64 [N], ascending, positive -> the tail with the least KS distance of all."""
    values = checked(eigenvalues)
    return best_tail(values, 0, values.size)


def score(matrix: Matrix) -> Score:
    """The alpha of that tail, with details `xmin` (where it begins) and `ks` (its distance)."""
    return score_tail(fit, matrix)
