"""log10 of the alpha-norm: log10 sum(l^alpha), which tends to alpha-hat where one eigenvalue dominates.

WeightWatcher's `log_alpha_norm`, with the `alpha` of this folder, computed as a log-sum-exp so that no power
overflows. Sign and traps are those of `alpha_hat`.
"""

import math
from typing import Final, Literal

import numpy as np

from tailcut.compress.metrics import Matrix, Needs, Score
from tailcut.compress.metrics._parts import finite, spectrum_of
from tailcut.compress.metrics._tail import LARGEST_ALPHA, MIN_EIGENVALUES, fitted
from tailcut.compress.metrics.alpha import fit

NEEDS: Final[Needs] = "spectrum"
SIGN: Final[Literal[1, -1]] = 1
LARGEST: Final = math.inf


def score(matrix: Matrix) -> Score:
    """log10 sum(l^alpha); InputError where there is no tail."""
    values = spectrum_of(matrix, MIN_EIGENVALUES)
    powers = min(fitted(fit, values).alpha, LARGEST_ALPHA) * np.log(values)
    total = powers[-1] + math.log(np.exp(powers - powers[-1]).sum())
    return Score(finite(total / math.log(10.0), "the logarithm of its alpha-norm"))
