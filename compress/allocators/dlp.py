"""DLP: blocks with larger scores lose more ("Dynamic layerwise pruning in large language models", ICML 2025).

    r_b = 1 - m_b / sum(m),   d_b = (r_b - r_min) / (r_max - r_min) * 2 a + const,   s_b = 1 - d_b

m_b is the block's mean of |W| ||x|| (the score `dlp`; the paper says median, its code takes the mean). Since r falls
linearly with m, s rises linearly with it over a range 2 a wide. Activations grow with depth in most models, so
that in effect later blocks lose more. The constant, [0, cap] and `compat` are those of `owl`. The authors' a is 0.04,
0.1 and 0.15 at 50, 60 and 70 %.
"""

from typing import Final

from tailcut.allocation import Allocation, Budget, LayerScores
from tailcut.compress.allocators import Settings
from tailcut.compress.allocators._depth import spread_by_score
from tailcut.compress.allocators._values import at_sparsity

METRICS: Final = ("dlp",)
SETTINGS: Final = ("spread", "compat")
_SPREAD_AT: Final = ((0.5, 0.04), (0.6, 0.1), (0.7, 0.15))


def allocate(scores: LayerScores, budget: Budget, settings: Settings) -> Allocation:
    """Blocks whose |W| times input norm is larger on average lose more, over a range 2 * spread wide; in most models
    these are the later ones. Needs the dlp score, that is calibration text. DLP, ICML 2025. Default spread (the
    paper's alpha): 0.04 up to 50 %, 0.1 at 60 %, 0.15 from 70 % on, linear between; compat: as published,
    unweighted and unclipped. A depth rule with the model's own pace; compare with atp.
    """
    spread = default_spread(budget.sparsity) if settings.spread is None else settings.spread
    return spread_by_score("dlp", scores, budget, spread, sign=1, compat=settings.compat)


def default_spread(sparsity: float) -> float:
    """0.04 up to 50 %, 0.1 at 60 %, 0.15 from 70 % on; linear between."""
    return at_sparsity(_SPREAD_AT, sparsity)
