"""RIA (Zhang et al. 2024, "Plug-and-Play", ICLR): a weight's share of its row and of its column, times the input.

    score = (|W_ij| / sum_k |W_ik| + |W_ij| / sum_k |W_kj|) * ||x_j||_2^a,  a = 1/2

A weight counts by what it is to its output and to its input, so that no channel is lost as a whole; the square root
of the norm is milder than Wanda's norm. Unstructured masks rank the whole matrix, as the authors' code does unless
it is asked for `per_outneuron`; their `a` of 0.5 is its default. N:M takes the lowest of each group.

Not here: their permutation of input channels, which makes N:M masks better but has to be undone in the layers around.
"""

from typing import Final

from torch import Tensor

from tailcut.allocation import Dense, Pattern
from tailcut.compress.masks import removal_mask
from tailcut.compress.pruners._given import energy_of, finite_weight
from tailcut.compress.statistics import Needs, Statistics

NEEDS: Final[Needs] = "norms"
EXPONENT: Final = 0.5  # of the input's norm


def importance(weight: Tensor, energy: Tensor) -> Tensor:
    """RIA's score: weight [out, in], energy [in] (squared input norms) -> [out, in]; -1 where W is zero."""
    size = weight.abs()
    # where a sum is zero all its weights are, and those are told apart by the -1
    shares = size / _positive(size.sum(0)) + size / _positive(size.sum(1))[:, None]
    return (shares * energy.pow(EXPONENT / 2)).masked_fill(weight == 0, -1.0)


def prune(weight: Tensor, pattern: Pattern, stats: Statistics) -> Tensor:
    """weight [out, in] float32 with `stats.energy` [in] -> the masked weight."""
    if isinstance(pattern, Dense):
        return weight
    score = importance(finite_weight(weight), energy_of(stats))
    return weight.masked_fill(removal_mask(score, pattern, per_row=False), 0.0)


def _positive(sums: Tensor) -> Tensor:
    return sums.masked_fill(sums == 0, 1.0)
