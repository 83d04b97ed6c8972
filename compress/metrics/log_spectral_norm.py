"""log10 of the largest eigenvalue (the squared largest singular value, as WeightWatcher has it). A scale metric.

Sign: as for `log_norm`; with few outlying eigenvalues the opposite could be argued as well, since those are what
training put there. Scaling the matrix by c adds 2 log10 c.
"""

import math
from typing import Final, Literal

from tailcut.compress.metrics import Matrix, Needs, Score
from tailcut.compress.metrics._parts import finite, spectrum_of

NEEDS: Final[Needs] = "spectrum"
SIGN: Final[Literal[1, -1]] = 1
LARGEST: Final = math.inf


def score(matrix: Matrix) -> Score:
    """log10 max(l); InputError for a zero matrix."""
    return Score(finite(math.log10(spectrum_of(matrix)[-1]), "the logarithm of its largest eigenvalue"))
