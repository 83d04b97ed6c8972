"""Marchenko-Pastur soft rank: upper edge of the random bulk over the largest eigenvalue.

A random matrix has 1; the further training pulled eigenvalues out of the bulk, the smaller it is, hence larger =
pruned more. The bulk's scale is read off the median eigenvalue, sigma^2 = median(l) / (n mu_q) with mu_q the median
of the Marchenko-Pastur law for q = m / n (Gavish and Donoho 2014, equation 15): closed form, and up to half of the
spectrum may be spikes. WeightWatcher fits sigma to a smoothed density by brute force instead, so the two agree
on random matrices and only roughly on trained ones. Scaling and transposing the matrix change nothing.
"""

from typing import Final, Literal

import numpy as np

from tailcut.compress.metrics import Matrix, Needs, Score
from tailcut.compress.metrics._marchenko_pastur import edges, median
from tailcut.compress.metrics._parts import spectrum_of

NEEDS: Final[Needs] = "spectrum"
SIGN: Final[Literal[1, -1]] = 1
LARGEST: Final = 1.0  # above it no eigenvalue leaves the bulk: how far below the edge the last one ends is chance


def score(matrix: Matrix) -> Score:
    """bulk edge / max(l), with details `bulk_max` and `spikes` (share of eigenvalues beyond it).

    Eigenvalues that were dropped as rounding error count as zeros of the median. InputError if that makes it zero.
    """
    small, large = sorted(matrix.shape)
    values = spectrum_of(matrix, small // 2 + 1)
    middle = float(np.median(np.concatenate([np.zeros(small - values.size), values])))
    edge = middle / median(small / large) * edges(small / large)[1]
    spikes = float((values > edge).sum() / small)
    return Score(edge / float(values[-1]), {"bulk_max": edge, "spikes": spikes})
