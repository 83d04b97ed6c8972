"""alpha of square tiles (FARMS, Hu et al. 2025): `alpha_peak` without the bias that a matrix's shape brings.

The eigenvalues of 128 x 128 tiles are pooled and fitted as `alpha_peak` fits a whole matrix's; see `_tiles`. Higher =
lighter tail = pruned more. Use it where matrices of different shape compete (granularity matrix or mixed). Costs
about as much as the matrices' own eigenvalues where they are 576 wide, and at most 256 tiles a matrix where they are
wider; not cached. Scaling and transposing the matrix change nothing. `farms_mid` is the closed form on the same eigenvalues.
"""

from typing import Final, Literal

from tailcut.compress.metrics import Matrix, Needs, Score
from tailcut.compress.metrics._parts import weight_of
from tailcut.compress.metrics._tail import LARGEST_ALPHA, fitted
from tailcut.compress.metrics._tiles import tile_spectrum
from tailcut.compress.metrics.alpha_peak import fit

NEEDS: Final[Needs] = "weight"
SIGN: Final[Literal[1, -1]] = 1
LARGEST: Final = LARGEST_ALPHA


def score(matrix: Matrix) -> Score:
    """alpha_peak of the pooled tiles, with detail `ks`; InputError where there is no tail."""
    found = fitted(fit, tile_spectrum(weight_of(matrix)))
    return Score(found.alpha, {"ks": found.ks})
