"""ATP: sparsity rises with depth in equal steps ("Determining layer-wise sparsity ...", ICML 2025).

    s_i = S - beta (L - 1) / 2 + beta (i - 1)        i = 1 ... L over the decoder blocks, equation 3

Errors of early blocks run through all later ones, so they keep more. beta lies between 0 and
min(2 S, 2 (1 - S)) / (L - 1), where the first or the last block reaches 0 or 1. The authors try beta in steps of
0.002 and keep the best WikiText *test* perplexity; `candidates` lists these steps for whoever selects on calibration
loss instead. Without a selection the default spreads as far as `dlp` does at the same sparsity. Blocks may differ in
size: the parameter-weighted budget is met with a common shift, sparsities stay in [0, cap]; `compat` is the
plain progression, refused where it leaves them.
"""

from typing import Final

import numpy as np

from tailcut.allocation import Allocation, Budget, LayerScores
from tailcut.compress.allocators import Settings
from tailcut.compress.allocators._budget import ordered, origin, plan
from tailcut.compress.allocators._depth import shifted
from tailcut.compress.allocators._values import by_name, members, refuse_pattern
from tailcut.compress.allocators.dlp import default_spread

METRICS: Final = ()
SETTINGS: Final = ("beta", "compat")
_STEP: Final = 0.002


def allocate(scores: LayerScores, budget: Budget, settings: Settings) -> Allocation:
    """Sparsity rises by beta from block to block: later blocks lose more. Needs no scores. ATP, ICML 2025, whose authors
    select beta by test perplexity; select it by calibration loss. Default beta: the range of dlp at this sparsity
    (0.08 wide up to 50 %, 0.3 from 70 % on) over the blocks; compat: the plain progression, unweighted. The baseline
    that rules which look at the model should beat.
    """
    refuse_pattern("atp", budget)
    layers = ordered(scores)
    blocks = tuple(members(layers))
    beta = default_beta(len(blocks), budget.sparsity) if settings.beta is None else settings.beta
    offsets = {block: beta * position for position, block in enumerate(blocks)}
    sparsities = shifted(layers, offsets, budget, compat=settings.compat)
    source = origin("atp", scores, budget, beta=repr(beta), compat=str(settings.compat))
    return plan(scores, by_name(layers, sparsities), source)


def largest_beta(blocks: int, sparsity: float) -> float:
    """Where the first block of an arithmetic progression reaches 0 or the last one 1; 0 for a single block."""
    return min(2.0 * sparsity, 2.0 * (1.0 - sparsity)) / (blocks - 1) if blocks > 1 else 0.0


def candidates(blocks: int, sparsity: float, step: float = _STEP) -> tuple[float, ...]:
    """The values of beta that ATP tries: step, 2 step, ... up to `largest_beta` (9 of them for 32 blocks at 70 %)."""
    # the published loop compares decimals: 0.002 * 5 must not miss 0.01 by rounding
    count = int(np.floor(largest_beta(blocks, sparsity) / step + 1e-9))
    return tuple(round(step * (index + 1), 12) for index in range(count))


def default_beta(blocks: int, sparsity: float) -> float:
    """A progression as wide as dlp's range, or as wide as it can be."""
    if blocks < 2:
        return 0.0
    return min(2.0 * default_spread(sparsity) / (blocks - 1), largest_beta(blocks, sparsity))
