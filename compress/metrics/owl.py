"""OWL's outlier ratio (Yin et al. 2024): percent of a block's weights whose importance passes M times the mean.

    D = 100 mean(A > M mean(A)),   A = |W_ij| ||x_j|| over all matrices of the block together

Inputs are those of the dense model, which is never pruned on the way, and M is 5 (`Options.outlier`). Blocks with more
outliers are pruned less: the paper's abstract says "directly proportional", its code lets the *density* grow with
D. Scaling the calibration activations changes nothing, and neither does scaling all weights of a block.
"""

import math
from collections.abc import Sequence
from typing import Final, Literal

import numpy as np

from tailcut.compress.metrics import Matrix, Needs, Options, Score
from tailcut.compress.metrics._parts import finite, importances

NEEDS: Final[Needs] = "block"
SIGN: Final[Literal[1, -1]] = -1
LARGEST: Final = math.inf


def score_block(matrices: Sequence[Matrix], options: Options) -> Score:
    """Percent of outliers in [0, 100]; a block without any importance has none."""
    count = sum(math.prod(matrix.shape) for matrix in matrices)
    total = sum(float(part.sum(dtype=np.float64)) for matrix in matrices for part in importances(matrix))
    limit = finite(options.outlier * total / count, "the mean of the block's importances")
    # float64: in float32 the limit itself could round onto a weight that it should lie above
    above = sum(int((part > np.float64(limit)).sum()) for matrix in matrices for part in importances(matrix))
    return Score(100.0 * above / count)
