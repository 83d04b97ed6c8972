"""Wanda (Sun et al. 2024): score |W_ij| * ||x_j||_2, compared within each output row; weights are not updated.

Every row loses floor(in * s) weights (N:M: the lowest of each group). Weights that are zero already go first, so
that a row of a dead input does not keep them at the cost of live ones.
"""

from typing import Final

from torch import Tensor

from tailcut.allocation import Dense, Pattern
from tailcut.compress.masks import removal_mask
from tailcut.compress.pruners._given import energy_of, finite_weight
from tailcut.compress.statistics import Needs, Statistics

NEEDS: Final[Needs] = "norms"


def importance(weight: Tensor, energy: Tensor) -> Tensor:
    """|W| * sqrt(E): weight [out, in], energy [in] (squared input norms) -> [out, in]; -1 where W is zero."""
    return (weight.abs() * energy.sqrt()).masked_fill(weight == 0, -1.0)


def prune(weight: Tensor, pattern: Pattern, stats: Statistics) -> Tensor:
    """weight [out, in] float32 with `stats.energy` [in] -> the masked weight."""
    if isinstance(pattern, Dense):
        return weight
    score = importance(finite_weight(weight), energy_of(stats))
    return weight.masked_fill(removal_mask(score, pattern, per_row=True), 0.0)
