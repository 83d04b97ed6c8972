"""log10 of the squared Frobenius norm, the sum of all eigenvalues. A scale metric.

Sign: norm-based capacity bounds read a larger norm as a more complex, worse generalising matrix, hence pruned
more; it is also the direction in which AlphaPruning compares it. The argument is weak inside one model, and the
paper finds scale metrics worse than shape metrics. Scaling the matrix by c adds 2 log10 c.
"""

import math
from typing import Final, Literal

from tailcut.compress.metrics import Matrix, Needs, Score
from tailcut.compress.metrics._parts import finite, spectrum_of

NEEDS: Final[Needs] = "spectrum"
SIGN: Final[Literal[1, -1]] = 1
LARGEST: Final = math.inf


def score(matrix: Matrix) -> Score:
    """log10 sum(l); InputError for a zero matrix."""
    return Score(finite(math.log10(spectrum_of(matrix).sum()), "the logarithm of its norm"))
