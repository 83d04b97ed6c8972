"""DLP's block score (Chen et al. 2025): mean of |W_ij| ||x_j|| over all matrices of the block together.

The published code takes the mean and prunes blocks with a *larger* score more, which in trained models mostly means
the later ones. The paper's text takes the median; that variant is `dlp_median`. Scaling the calibration activations
by c multiplies it by c.
"""

import math
from collections.abc import Sequence
from typing import Final, Literal

import numpy as np

from tailcut.compress.metrics import Matrix, Needs, Options, Score
from tailcut.compress.metrics._parts import finite, importances

NEEDS: Final[Needs] = "block"
SIGN: Final[Literal[1, -1]] = 1
LARGEST: Final = math.inf


def score_block(matrices: Sequence[Matrix], options: Options) -> Score:
    """The block's mean importance."""
    count = sum(math.prod(matrix.shape) for matrix in matrices)
    total = sum(float(part.sum(dtype=np.float64)) for matrix in matrices for part in importances(matrix))
    return Score(finite(total / count, "the mean of the block's importances"))
