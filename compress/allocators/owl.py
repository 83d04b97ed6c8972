"""OWL: blocks with more outliers keep more ("Outlier weighed layerwise sparsity", ICML 2024).

    d_b = (D_b - D_min) / (D_max - D_min) * 2 lambda + const,    s_b = 1 - d_b

D_b is the block's share of weights whose |W| ||x|| passes 5 times the block's mean (the score `owl`). All matrices of
a block get the same sparsity, the range over blocks is 2 lambda wide. The constant makes the parameter-weighted
budget exact, with sparsities kept in [0, cap]; `compat` takes the unweighted mean and clips nothing, as published.
Lambda is 0.08 in the authors' scripts at 70 %; below, ours falls to 0.04 at 50 %, where wide ranges hurt.
"""

from typing import Final

from tailcut.allocation import Allocation, Budget, LayerScores
from tailcut.compress.allocators import Settings
from tailcut.compress.allocators._depth import spread_by_score
from tailcut.compress.allocators._values import at_sparsity

METRICS: Final = ("owl",)
SETTINGS: Final = ("spread", "compat")
_SPREAD_AT: Final = ((0.5, 0.04), (0.7, 0.08))


def allocate(scores: LayerScores, budget: Budget, settings: Settings) -> Allocation:
    """Blocks with more outlying weights keep more: the share of |W| times input norm above 5 times its mean maps
    linearly onto a range 2 * spread wide. Needs the owl score, that is calibration text. OWL, ICML 2024. Default
    spread (the paper's lambda): 0.04 up to 50 %, 0.08 from 70 % on, linear between; compat: as published, unweighted
    and unclipped. Published gains are at 60 % and more.
    """
    spread = default_spread(budget.sparsity) if settings.spread is None else settings.spread
    return spread_by_score("owl", scores, budget, spread, sign=-1, compat=settings.compat)


def default_spread(sparsity: float) -> float:
    """0.04 up to 50 %, 0.08 from 70 % on; linear between."""
    return at_sparsity(_SPREAD_AT, sparsity)
