"""Global pruning: one threshold on the weights' scores for the whole model; each matrix loses what lies below it.

The scores are |W| (the curve `magnitude`) or |W| ||x|| (the curve `wanda`), measured as quantiles at 1025 fractions of
each matrix. The fraction below a threshold is interpolated linearly between them, so a matrix's sparsity is off
by less than one step of the curve, 1/1024, from a sort of all the weights; the budget is met exactly all the same.

Scores of different matrices are not comparable: a matrix with small weights, or small inputs, may lose everything up
to the cap. This is a baseline (it is in AlphaPruning's table of allocators, where it does poorly).
"""

from typing import Final

import numpy as np

from tailcut.allocation import Allocation, Budget, LayerScores
from tailcut.compress.allocators import Settings
from tailcut.compress.allocators._budget import ordered, origin, plan
from tailcut.compress.allocators._curves import curves_of, one_threshold
from tailcut.compress.allocators._values import by_name, parameter_counts, refuse_pattern
from tailcut.errors import InputError

METRICS: Final = ("magnitude",)
SETTINGS: Final = ("metric",)
_CURVES: Final = ("magnitude", "wanda")


def allocate(scores: LayerScores, budget: Budget, settings: Settings) -> Allocation:
    """One threshold on the weights' scores for the whole model: each matrix loses what lies below it. Needs the
    magnitude curve of every matrix, or with --metric wanda the curve of |W| times the input norm. Classic global
    magnitude pruning, without sorting all weights at once. Default metric: magnitude. A baseline: matrices with
    small weights are cut to the cap, which ruins language models at high sparsity.
    """
    refuse_pattern("global", budget)
    layers = ordered(scores)
    curve = (settings.metric or METRICS[0]).replace("-", "_")
    if curve not in _CURVES:
        raise InputError(f"the global allocator compares magnitude or wanda scores, not {curve}; give --metric wanda")
    curves = curves_of(layers, curve)
    fractions = np.linspace(0.0, 1.0, curves.shape[1])
    sparsities = one_threshold(curves, fractions, parameter_counts(layers), budget.sparsity, budget.cap)
    return plan(scores, by_name(layers, sparsities), origin("global", scores, budget, metric=curve))
