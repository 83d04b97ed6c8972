"""Mean of Wanda's importance |W_ij| ||x_j||, and its quantiles as the curve `wanda`.

Sign: a matrix whose weights matter more by this measure is pruned less, as one threshold over all matrices would do.
Wanda itself compares weights only inside a row, and comparing them across layers is known to work badly; the
score is for baselines. (`dlp`, the same mean over a block, is read the other way round by its authors.) Scaling the
matrix or the calibration activations by c multiplies all by c.
"""

import math
from typing import Final, Literal

import numpy as np

from tailcut.compress.metrics import Matrix, Needs, Score
from tailcut.compress.metrics._parts import curve, finite, gathered, importances

NEEDS: Final[Needs] = "inputs"
SIGN: Final[Literal[1, -1]] = -1
LARGEST: Final = math.inf


def score(matrix: Matrix) -> Score:
    """mean |W| ||x||, with the curve `wanda`."""
    values = gathered(importances(matrix), math.prod(matrix.shape))
    mean = finite(float(values.mean(dtype=np.float64)), "the mean of its importances")
    return Score(mean, curves={"wanda": curve(values)})
