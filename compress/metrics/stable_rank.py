"""Stable rank: the sum of all eigenvalues over the largest, between 1 and the rank.

A heavy tail puts the spectrum's mass into a few large eigenvalues, hence a small stable rank: larger = lighter tail
= pruned more. Scaling the matrix changes nothing. (AlphaPruning table 1; WeightWatcher's `stable_rank`.)
"""

import math
from typing import Final, Literal

from tailcut.compress.metrics import Matrix, Needs, Score
from tailcut.compress.metrics._parts import spectrum_of

NEEDS: Final[Needs] = "spectrum"
SIGN: Final[Literal[1, -1]] = 1
LARGEST: Final = math.inf


def score(matrix: Matrix) -> Score:
    """sum(l) / max(l); InputError for a zero matrix."""
    values = spectrum_of(matrix)
    return Score(float(values.sum() / values[-1]))
