"""alpha-hat, alpha times log10 of the largest eigenvalue (Martin, Peng and Mahoney 2021): shape weighted by scale.

WeightWatcher's `alpha_weighted`, with the `alpha` of this folder (the whole spectrum searched). Smaller values went
with better models across model families, hence larger = pruned more. Two traps: scaling the matrix by c adds
2 alpha log10 c, so that layers of different scale are not comparable, and where the largest eigenvalue is below 1 a
lighter tail gives a *smaller* value. alpha is clamped before the product.
"""

import math
from typing import Final, Literal

from tailcut.compress.metrics import Matrix, Needs, Score
from tailcut.compress.metrics._parts import finite, spectrum_of
from tailcut.compress.metrics._tail import LARGEST_ALPHA, MIN_EIGENVALUES, fitted
from tailcut.compress.metrics.alpha import fit

NEEDS: Final[Needs] = "spectrum"
SIGN: Final[Literal[1, -1]] = 1
LARGEST: Final = math.inf


def score(matrix: Matrix) -> Score:
    """alpha log10 max(l); InputError where there is no tail."""
    values = spectrum_of(matrix, MIN_EIGENVALUES)
    alpha = min(fitted(fit, values).alpha, LARGEST_ALPHA)
    return Score(finite(alpha * math.log10(values[-1]), "alpha-hat"))
