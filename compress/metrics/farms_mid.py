"""alpha of square tiles with the tail beginning at their median eigenvalue: closed form, no search.

As `farms`, with `alpha_mid` in place of `alpha_peak`: the most robust of the family, and on random matrices of any
shape it tends to one known limit (2.12), which the tests check. Scaling and transposing the matrix change nothing.
"""

from typing import Final, Literal

from tailcut.compress.metrics import Matrix, Needs, Score
from tailcut.compress.metrics._parts import weight_of
from tailcut.compress.metrics._tail import LARGEST_ALPHA, fitted
from tailcut.compress.metrics._tiles import tile_spectrum
from tailcut.compress.metrics.alpha_mid import fit

NEEDS: Final[Needs] = "weight"
SIGN: Final[Literal[1, -1]] = 1
LARGEST: Final = LARGEST_ALPHA


def score(matrix: Matrix) -> Score:
    """alpha_mid of the pooled tiles, with detail `ks`; InputError where there is no tail."""
    found = fitted(fit, tile_spectrum(weight_of(matrix)))
    return Score(found.alpha, {"ks": found.ks})
