"""Magnitude pruning: the smallest |w| of the matrix go (N:M: of each group).

One ranking per matrix, as in the papers' baselines, but with exact counts: their threshold `|w| <= t` removes
every tie of t as well.
"""

from typing import Final

from torch import Tensor

from tailcut.allocation import Dense, Pattern
from tailcut.compress.masks import removal_mask
from tailcut.compress.pruners._given import finite_weight
from tailcut.compress.statistics import Needs, Statistics

NEEDS: Final[Needs] = "nothing"


def prune(weight: Tensor, pattern: Pattern, stats: Statistics) -> Tensor:
    """weight [out, in] float32 -> weight with the pattern's share of smallest magnitudes zeroed."""
    if isinstance(pattern, Dense):
        return weight
    return weight.masked_fill(removal_mask(finite_weight(weight).abs(), pattern, per_row=False), 0.0)
