"""Prune and round in one sweep (SparseGPT's joint mode): both errors of a column go to the columns after it.

For each column: what the mask removes becomes zero, what it keeps is rounded, and the difference to the weights as
corrected so far is made up for. Masks are chosen as SparseGPT chooses them, counts are exactly its counts. Pruning
first and rounding after (any pruner, then gptq) corrects each error only among what its own step still may change.
"""

from typing import Final

from torch import Tensor

from tailcut.allocation import NM, Bits, Pattern
from tailcut.compress.masks import require_divisible
from tailcut.compress.pruners.sparsegpt import BLOCK, inverse_factor, sweep
from tailcut.compress.quantisers._columns import Columns
from tailcut.compress.quantisers._grid import Quantised
from tailcut.compress.statistics import Needs, Statistics, exact_float32
from tailcut.errors import InputError

NEEDS: Final[Needs] = "hessian"
PRUNES: Final = True


def quantise(weight: Tensor, pattern: Pattern, bits: Bits, stats: Statistics, clip: bool = True) -> Quantised:
    """weight [out, in] float32, not pruned, with `stats.hessian` [in, in] -> integers that obey the pattern."""
    if stats.hessian is None:
        raise ValueError("joint needs the Hessian of its inputs (NEEDS = 'hessian')")
    if isinstance(pattern, NM):
        require_divisible("matrix", int(weight.shape[1]), pattern)
        if bits != 8 and BLOCK % pattern.block:
            raise InputError(f"joint rounds groups of {BLOCK} columns, which {pattern} does not divide; use gptq")
    with exact_float32():
        factor = inverse_factor(stats.hessian)
        columns = Columns(weight, factor, bits, clip)
        sweep(weight.clone(), factor, stats.hessian.diagonal() == 0, pattern, columns, weight == 0)
    return columns.result()
