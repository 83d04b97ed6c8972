"""GPTQ (Frantar et al. 2023): round columns left to right, let the rest of the row make up for each rounding error.

The sweep of SparseGPT with a rounding in the place of the zeroing: with U upper triangular, H^-1 = U^T U, rounding w_j
to q_j changes the columns after j by -((w_j - q_j) / U_jj) U_j,: . Columns go in their own order; the scales of a group
are taken when the sweep arrives there. A weight that is zero (pruned) stays zero: its mask is part of the problem, and
what earlier columns would have put there goes on to the columns after it.
"""

from typing import Final

from torch import Tensor

from tailcut.allocation import Bits, Dense, Pattern
from tailcut.compress.pruners.sparsegpt import inverse_factor, sweep
from tailcut.compress.quantisers._columns import Columns
from tailcut.compress.quantisers._grid import Quantised
from tailcut.compress.statistics import Needs, Statistics, exact_float32

NEEDS: Final[Needs] = "hessian"
PRUNES: Final = False


def quantise(weight: Tensor, pattern: Pattern, bits: Bits, stats: Statistics, clip: bool = True) -> Quantised:
    """weight [out, in] float32 with `stats.hessian` [in, in] -> integers that make up for each other's errors."""
    if pattern != Dense():
        raise ValueError("gptq prunes nothing; prune first, or use joint")
    if stats.hessian is None:
        raise ValueError("gptq needs the Hessian of its inputs (NEEDS = 'hessian')")
    with exact_float32():
        factor = inverse_factor(stats.hessian)
        columns = Columns(weight, factor, bits, clip)
        sweep(weight.clone(), factor, stats.hessian.diagonal() == 0, pattern, columns, weight == 0)
    return columns.result()
