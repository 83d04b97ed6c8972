"""AlphaPruning: matrices with lighter tails (higher alpha) are cut more (section 3.2, equation 3).

    t_i = (m_i - m_min) / (m_max - m_min) * 2 tau + (1 - tau)        in [1 - tau, 1 + tau]
    s_i = eta t_i,   eta = S sum(N) / sum(N t)                       weighted by parameters N

A sparsity can pass 1 in that closed form (the published scripts do for LLaMA-13B at tau 0.5). Here no layer
passes the cap and what it cannot take is spread over the others, so that the global sparsity stays exact.
Equal metrics everywhere give the uniform plan. m is clamped to the metric's LARGEST first.

Granularity:
    block   m of a decoder block = unweighted mean over its matrices, which all get the block's sparsity
            (the published default, and the best in the paper)
    matrix  every matrix has its own m
    mixed   blocks keep the sparsity that `block` gives them; inside a block it is shared out in proportion to the
            t of `matrix`. The paper names a mixed assignment but neither defines it nor publishes its code:
            this reading is ours.
"""

from typing import Final

import numpy as np

from tailcut.allocation import Allocation, Budget, LayerScore, LayerScores
from tailcut.compress.allocators import Settings
from tailcut.compress.allocators._budget import Vector, ordered, origin, plan, water_fill
from tailcut.compress.allocators._values import (
    at_sparsity,
    block_means,
    by_name,
    linear_map,
    members,
    metric_values,
    parameter_counts,
    refuse_pattern,
)

METRICS: Final = ("alpha_peak",)
SETTINGS: Final = ("metric", "tau", "granularity")
# global sparsity -> tau: near what the authors' scripts use for 70 % and above; at 50 % gains vanish and a
# wide spread hurts
_TAU_AT: Final = ((0.5, 0.1), (0.7, 0.3), (0.8, 0.2))


def allocate(scores: LayerScores, budget: Budget, settings: Settings) -> Allocation:
    """Matrices with lighter tails (higher alpha) are cut more: scores map linearly onto [1 - tau, 1 + tau] times a
    common factor. Needs one value a matrix, of any metric; each metric's file says which end is cut more.
    AlphaPruning, NeurIPS 2024. Default metric: alpha_peak; tau: 0.1 up to 50 %, 0.3 at 70 %, 0.2 from 80 % on,
    linear between; granularity: block (matrix and mixed are the others). Needs no text; published gains are at 60 % and more.
    """
    refuse_pattern("alpha", budget)
    layers = ordered(scores)
    tau = default_tau(budget.sparsity) if settings.tau is None else settings.tau
    metric = (settings.metric or METRICS[0]).replace("-", "_")
    granularity = settings.granularity or "block"
    values = metric_values(layers, metric)
    if granularity == "matrix":
        sparsities = _spread(values, parameter_counts(layers), budget.sparsity, budget.cap, tau)
    else:
        sparsities = _by_block(layers, values, budget, tau, mixed=granularity == "mixed")
    source = origin("alpha", scores, budget, metric=metric, tau=repr(tau), granularity=granularity)
    return plan(scores, by_name(layers, sparsities), source)


def default_tau(sparsity: float) -> float:
    """0.1 up to 50 %, 0.3 at 70 %, 0.2 from 80 % on; linear between."""
    return at_sparsity(_TAU_AT, sparsity)


def _spread(values: Vector, parameters: Vector, sparsity: float, cap: float, tau: float) -> Vector:
    return water_fill(linear_map(values, tau), parameters, sparsity, cap)


def _by_block(layers: tuple[LayerScore, ...], values: Vector, budget: Budget, tau: float, *, mixed: bool) -> Vector:
    """Sparsity of each layer [layers] when blocks, not matrices, compete for the budget."""
    parameters, blocks = parameter_counts(layers), members(layers)
    means = np.array(list(block_means(layers, values).values()))
    sizes = np.array([parameters[indices].sum() for indices in blocks.values()])
    per_block = _spread(means, sizes, budget.sparsity, budget.cap, tau)
    proportions = linear_map(values, tau) if mixed else np.ones_like(values)
    result = np.empty_like(values)
    for sparsity, indices in zip(per_block, blocks.values(), strict=True):
        if mixed:
            result[indices] = water_fill(proportions[indices], parameters[indices], float(sparsity), budget.cap)
        else:
            result[indices] = sparsity
    return result
