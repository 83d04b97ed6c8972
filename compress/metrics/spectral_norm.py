"""The largest eigenvalue: the squared largest singular value, as WeightWatcher has it. A scale metric.

Sign: as for `log_norm`. Unlike its logarithm it lets a single large matrix take all of the linear map of an
allocator. Scaling the matrix by c multiplies it by c^2.
"""

import math
from typing import Final, Literal

from tailcut.compress.metrics import Matrix, Needs, Score
from tailcut.compress.metrics._parts import finite, spectrum_of

NEEDS: Final[Needs] = "spectrum"
SIGN: Final[Literal[1, -1]] = 1
LARGEST: Final = math.inf


def score(matrix: Matrix) -> Score:
    """max(l); InputError for a zero matrix."""
    return Score(finite(float(spectrum_of(matrix)[-1]), "its largest eigenvalue"))
