"""Entropy of the eigenvalues taken as probabilities, over its largest possible value: between 0 and 1.

    E = -sum(p ln p) / ln(rank),   p = l / sum(l)

A heavy tail concentrates p on few eigenvalues, hence a small entropy: larger = lighter tail = pruned more.
Scaling the matrix changes nothing. A matrix of rank 1 has none (ln 1 = 0). WeightWatcher's `entropy`, but for the
1e-10 that it adds to every p, which moves the value by less than 1e-6 of itself.
"""

import math
from typing import Final, Literal

import numpy as np

from tailcut.compress.metrics import Matrix, Needs, Score
from tailcut.compress.metrics._parts import spectrum_of

NEEDS: Final[Needs] = "spectrum"
SIGN: Final[Literal[1, -1]] = 1
LARGEST: Final = math.inf


def score(matrix: Matrix) -> Score:
    """Entropy over ln(rank), rank = number of significant eigenvalues; InputError below rank 2."""
    values = spectrum_of(matrix, 2)
    shares = values / values.sum()
    return Score(float(-(shares * np.log(shares)).sum() / np.log(values.size)))
