"""How one matrix is rounded to few bits. A file here is a quantiser; its file name is its name on the command line.

A quantiser sees a weight, bits and statistics, never a model. 8 bits have one scale a row; 4, 3 and 2 bits one a row
and group of 128 columns; every grid is symmetric (tailcut.quantised). The contract (tested over this folder's listing):
a weight that is zero stays zero, `pattern` holds exactly, |q| <= LARGEST[bits], scales are finite, the input is not
changed, and the same input gives the same result.
"""

from typing import Protocol

from torch import Tensor

from tailcut.allocation import Bits, Pattern
from tailcut.compress.quantisers._grid import Quantised
from tailcut.compress.statistics import Needs, Statistics


class Quantiser(Protocol):
    """What a module of this folder offers."""

    NEEDS: Needs  # what must have been collected for `stats`
    PRUNES: bool  # prunes in the same sweep: it gets dense weights and the pattern, and no pruner is asked

    def quantise(self, weight: Tensor, pattern: Pattern, bits: Bits, stats: Statistics, clip: bool) -> Quantised:
        """weight [out, in] float32 -> integers and scales.

        pattern: what is still to be pruned, `Dense` unless PRUNES. clip: scales below 8 bits are searched by squared
        error, else they are the largest weight's.
        """
        ...
