"""DLP's block score as the paper words it: the median of |W_ij| ||x_j|| over all matrices of the block together.

Direction and scale as for `dlp`, whose mean is what the published code computes. Needs the block's importances in
memory at once: 4 bytes for each of its weights.
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
    """The lower of the two middle importances of a block with an even number of weights, as torch's median is."""
    values = np.concatenate([part.reshape(-1) for matrix in matrices for part in importances(matrix)])
    values.partition((values.size - 1) // 2)
    return Score(finite(float(values[(values.size - 1) // 2]), "the median of the block's importances"))
