"""Allocators that add an offset to the same sparsity for every block: OWL, DLP and ATP.

    s_b = min(cap, max(0, m + o_b)),   m so that sum(N s) = S sum(N)

The published codes take m from the unweighted mean of the offsets and clip nothing: exact only when blocks are of
equal size, and the sparsity may leave [0, 1]. `compat` does the same, and refuses what cannot be carried out.
"""

from collections.abc import Mapping

import numpy as np

from tailcut.allocation import Allocation, Budget, LayerScore, LayerScores
from tailcut.compress.allocators._budget import Vector, ordered, origin, plan
from tailcut.compress.allocators._fill import fill
from tailcut.compress.allocators._values import (
    block_means,
    by_name,
    members,
    parameter_counts,
    raw_values,
    refuse_pattern,
)
from tailcut.errors import InputError


def spread_by_score(
    name: str, scores: LayerScores, budget: Budget, spread: float, *, sign: int, compat: bool
) -> Allocation:
    """The plan of allocator `name`: blocks spread evenly by the mean of the score of that name, more of it meaning more
    sparsity (sign 1) or less (-1)."""
    refuse_pattern(name, budget)
    layers = ordered(scores)
    means = block_means(layers, raw_values(layers, name))
    offsets = spread_evenly(sign * np.array(list(means.values())), spread)
    sparsities = shifted(layers, dict(zip(means, offsets, strict=True)), budget, compat=compat)
    source = origin(name, scores, budget, metric=name, spread=repr(spread), compat=str(compat))
    return plan(scores, by_name(layers, sparsities), source)


def shifted(
    layers: tuple[LayerScore, ...], offsets: Mapping[int, float], budget: Budget, *, compat: bool = False
) -> Vector:
    """Sparsity of each layer [layers] from its block's offset (block -> offset, in sparsity, for every block)."""
    blocks = members(layers)
    wanted = np.array([offsets[block] for block in blocks])
    if compat:
        levels = _published(list(blocks), wanted, budget)
    else:
        counts = parameter_counts(layers)
        sizes = np.array([counts[indices].sum() for indices in blocks.values()])
        levels = fill(wanted, np.ones_like(wanted), sizes, budget.sparsity, 0.0, budget.cap)
    result = np.empty(len(layers))
    for level, indices in zip(levels, blocks.values(), strict=True):
        result[indices] = level
    return result


def _published(blocks: list[int], offsets: Vector, budget: Budget) -> Vector:
    levels = np.asarray(offsets - offsets.mean() + budget.sparsity, np.float64)
    for block, level in zip(blocks, levels, strict=True):
        if not 0.0 <= level <= budget.cap:
            raise InputError(
                f"block {block}: the published arithmetic gives a sparsity of {level:.4f}, outside [0, {budget.cap}]; "
                "spread less, or leave compat out"
            )
    return levels


def spread_evenly(values: Vector, spread: float) -> Vector:
    """Values [units] -> [0, 2 spread], linearly; 0 everywhere if all values are equal."""
    span = np.ptp(values)
    return np.zeros_like(values) if span == 0.0 else np.asarray((values - values.min()) / span * 2.0 * spread)
