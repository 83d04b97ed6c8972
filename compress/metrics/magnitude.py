"""Mean of |W|, the mean of its square, and its quantiles as the curve `magnitude`.

Sign: what magnitude pruning removes first matters least to it, so a matrix of larger weights is pruned less. That
compares layers by scale, which normalisation layers make arbitrary. The curve (1025 quantiles of |W|) is what a
global threshold on magnitudes, and LAMP, are computed from; LAMP also needs the mean square, because the few largest
weights hold more of it than their quantiles tell. Scaling the matrix by c multiplies all by c, or c squared.
"""

import math
from typing import Final, Literal

import numpy as np

from tailcut.compress.metrics import Matrix, Needs, Score
from tailcut.compress.metrics._parts import curve, finite, gathered, magnitudes

NEEDS: Final[Needs] = "weight"
SIGN: Final[Literal[1, -1]] = -1
LARGEST: Final = math.inf


def score(matrix: Matrix) -> Score:
    """mean |W|, with `square` (mean W^2) and the curve `magnitude`."""
    values = gathered(magnitudes(matrix), math.prod(matrix.shape))
    mean = finite(float(values.mean(dtype=np.float64)), "the mean of its weights")
    squares = sum(float(np.square(part, dtype=np.float64).sum()) for part in magnitudes(matrix))
    square = finite(squares / values.size, "the mean square of its weights")
    return Score(mean, {"square": square}, {"magnitude": curve(values)})
