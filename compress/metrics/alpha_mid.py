"""alpha with the tail beginning at the median eigenvalue: closed form, no search.

AlphaPruning's `xmin_mid`, TempBalance's `median`: index floor(N / 2). The most robust of the family; on
Marchenko-Pastur (random) spectra it converges to a known limit, which the tests check.
"""

from typing import Final, Literal

import numpy as np

from tailcut.compress.metrics import Matrix, Needs, Score, Spectrum, TailFit
from tailcut.compress.metrics._tail import LARGEST_ALPHA, checked, hill_alphas, ks_distances, score_tail

NEEDS: Final[Needs] = "spectrum"
SIGN: Final[Literal[1, -1]] = 1  # higher alpha = lighter tail = pruned more
LARGEST: Final = LARGEST_ALPHA


def fit(eigenvalues: Spectrum) -> TailFit:
    """Eigenvalues float64 [N], ascending, positive -> the tail beginning at index N // 2."""
    values = checked(eigenvalues)
    index = values.size // 2
    logs = np.log(values)
    alphas = hill_alphas(logs)
    if not np.isfinite(alphas[index]):
        return TailFit(0.0, float(values[index]), 1.0, index)
    ks = ks_distances(logs, alphas, index, index + 1)[0]
    return TailFit(float(alphas[index]), float(values[index]), float(ks), index)


def score(matrix: Matrix) -> Score:
    """The alpha of that tail, with details `xmin` (where it begins) and `ks` (its distance)."""
    return score_tail(fit, matrix)
