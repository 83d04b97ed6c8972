"""Wanda's variant (Sun et al. 2024, `--use_variant` of their code): rows lose as much as they can spare.

Each row is sorted by Wanda's score and loses weights until these make up a share alpha of the row's sum; the same
alpha for all rows, such that the matrix reaches its sparsity. Rows whose importance sits in few weights lose more.

The authors bisect alpha in [0, 0.8] until the sparsity is met to 0.001. The limit of that bisection needs no search:
give every weight its row's cumulative share up to and including itself, and remove the lowest of the whole matrix.
So the count is exact, and alpha may pass 0.8. N:M is Wanda's, the variant being for unstructured masks only.
"""

from typing import Final

import torch
from torch import Tensor

from tailcut.allocation import NM, Dense, Pattern
from tailcut.compress.masks import removal_mask
from tailcut.compress.pruners import wanda
from tailcut.compress.pruners._given import energy_of, finite_weight
from tailcut.compress.statistics import Needs, Statistics

NEEDS: Final[Needs] = "norms"


def cumulative_share(score: Tensor) -> Tensor:
    """score [out, in] -> the share of its row's sum up to and including each weight, float64; below 0 where W is zero."""
    zero = score < 0  # Wanda's mark of a weight that is zero already
    values, order = score.clamp(min=0.0).sort(dim=1, stable=True)
    sums = values.cumsum(1, dtype=torch.float64)
    share = sums / sums[:, -1:].clamp(min=torch.finfo(torch.float64).tiny)
    return torch.empty_like(share).scatter_(1, order, share).masked_fill(zero, -1.0)


def prune(weight: Tensor, pattern: Pattern, stats: Statistics) -> Tensor:
    """weight [out, in] float32 with `stats.energy` [in] -> the masked weight."""
    if isinstance(pattern, Dense | NM):
        return wanda.prune(weight, pattern, stats)
    share = cumulative_share(wanda.importance(finite_weight(weight), energy_of(stats)))
    return weight.masked_fill(removal_mask(share, pattern, per_row=False), 0.0)
