"""How one matrix is cut. A file here is a pruner; its file name is its name on the command line.

A pruner sees a weight, a pattern and statistics, never a model. The contract (tested over this folder's
listing): the result obeys the pattern exactly, zero sparsity and `Dense` give the weight back, the input is
not changed, and the same input gives the same result.
"""

from typing import Protocol

from torch import Tensor

from tailcut.allocation import Pattern
from tailcut.compress.statistics import Needs, Statistics


class Pruner(Protocol):
    """What a module of this folder offers."""

    NEEDS: Needs  # what must have been collected for `stats`

    def prune(self, weight: Tensor, pattern: Pattern, stats: Statistics) -> Tensor:
        """weight [out, in] float32 -> the pruned matrix, same shape and dtype."""
        ...
