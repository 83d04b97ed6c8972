"""A budget of time instead of zeros: as little damage as a decode speed allows on a measured engine.

    minimise   sum_i N_i e_i^2 / (2 t_i)      over the pattern of each matrix i
    such that  fixed_ms + sum_i ms_i <= (fixed_ms + sum_i dense ms_i) / speedup

ms_i comes from the cost table: of the matrix's shape, at the pattern, as this engine runs it. Patterns are dense,
multiples of 1 % in the range of sparsities that was measured, and the N:M that were measured: an engine that
accelerates only 2:4 gets 2:4 here and dense there, one that runs any zeros gets unstructured sparsities, and a matrix
whose product does not get faster is left alone. e_i is the pattern's sparsity, of N:M the unstructured sparsity that
loses as much (`_damage`). t_i is AlphaPruning's linear map of the metric on [1 - tau, 1 + tau] and N_i counts
parameters: where costs fall in proportion to the parameters left, the optimum is s_i = eta t_i, the alpha allocator's.

The choice is a multiple-choice knapsack; its damage is within one step of the least possible (`_knapsack`), and
`gap_at_most` of the provenance says how far at most. Time is the sum of products measured alone: an engine that
overlaps or fuses them may differ, so bench the result.
"""

from collections.abc import Sequence
from typing import Final

import numpy as np

from tailcut.allocation import NM, Allocation, Budget, LayerPlan, LayerScore, LayerScores, Pattern
from tailcut.compress.allocators import Granularity, Settings
from tailcut.compress.allocators._budget import Vector, ordered, origin
from tailcut.compress.allocators._damage import equal_sparsity
from tailcut.compress.allocators._knapsack import Chosen, choose
from tailcut.compress.allocators._values import block_mean_of_each, linear_map, metric_values
from tailcut.cost import CostTable, Curve
from tailcut.errors import InputError
from tailcut.quantised import Precision

STEPS: Final = True
METRICS: Final = ("alpha_peak",)
SETTINGS: Final = ("metric", "tau", "granularity", "cost", "precision")
TAU: Final = 0.2
LEVEL: Final = 0.01  # sparsities are multiples of this above the lowest measured one


def allocate(scores: LayerScores, budget: Budget, settings: Settings) -> Allocation:
    """Patterns that reach a decode speed (--speedup) on a measured engine with the least damage by score;
    unstructured and N:M are mixed as the engine accelerates them. Needs one value a matrix, of any metric, and a
    cost table of `tailcut cost`. Ours. Default metric: alpha_peak; tau: 0.2; granularity of the scores: block (matrix,
    and mixed for the mean of both); precision: the cost table's only one.
    """
    layers = ordered(scores)
    metric, granularity = (settings.metric or METRICS[0]).replace("-", "_"), settings.granularity or "block"
    tau = TAU if settings.tau is None else settings.tau
    weights = _weights(layers, metric_values(layers, metric), granularity, tau)
    table, speedup = _asked(budget, settings)
    precision = _precision(table, settings)
    curves = [table.curve(layer.shape, precision) for layer in layers]
    options = [curve.patterns(layer.shape[1], budget.cap, LEVEL) for curve, layer in zip(curves, layers, strict=True)]
    costs = [_costs(curve, patterns) for curve, patterns in zip(curves, options, strict=True)]
    damages = [
        layer.parameters * np.array([equal_sparsity(p) for p in patterns]) ** 2 / (2.0 * weight)
        for layer, patterns, weight in zip(layers, options, weights, strict=True)
    ]
    fixed, dense = table.fixed_ms.get(precision, 0.0), sum(curve.dense_ms for curve in curves)
    found = choose(costs, damages, max(0.0, (fixed + dense) / speedup - fixed))
    if found is None:
        raise _too_fast(table, speedup, fixed, dense, sum(float(cost.min()) for cost in costs))
    plans = {
        layer.name: LayerPlan(patterns[option])
        for layer, patterns, option in zip(layers, options, found.options, strict=True)
    }
    facts = {"metric": metric, "tau": repr(tau), "granularity": granularity, "precision": precision}
    facts |= _facts(table, fixed, dense, found, speedup) | {"patterns": _summary([plans[x.name] for x in layers])}
    source = origin("latency", scores, budget, **facts)
    return Allocation({layer.name: plans[layer.name] for layer in scores.layers}, source)


def _asked(budget: Budget, settings: Settings) -> tuple[CostTable, float]:
    if budget.pattern is not None or budget.sparsity:
        raise InputError("the latency allocator takes a speed, not a sparsity or pattern; give --speedup alone")
    if budget.speedup is None:
        raise InputError("the latency allocator needs the decode speed wanted over dense, such as --speedup 2")
    if settings.cost is None:
        raise InputError("the latency allocator needs what products cost here: --cost cost.json, from `tailcut cost`")
    return settings.cost, budget.speedup


def _precision(table: CostTable, settings: Settings) -> Precision:
    known = table.precisions
    if settings.precision is None and len(known) == 1:
        return known[0]
    if settings.precision not in known:
        asked = settings.precision or "none was named"
        raise InputError(
            f"the cost table of {table.engine} holds {', '.join(known) or 'nothing'}; choose one with --precision "
            f"({asked})"
        )
    return settings.precision


def _weights(layers: tuple[LayerScore, ...], values: Vector, granularity: Granularity, tau: float) -> Vector:
    """t of each matrix [layers], never quite 0, so that a matrix that should lose nothing has a finite damage."""
    own = linear_map(values, tau)
    if granularity != "matrix":
        of_block = linear_map(block_mean_of_each(layers, values), tau)
        own = of_block if granularity == "block" else (own + of_block) / 2.0
    return np.asarray(np.maximum(own, 1e-6), np.float64)


def _costs(curve: Curve, patterns: Sequence[Pattern]) -> Vector:
    return np.array([curve.ms(pattern) for pattern in patterns], np.float64)


def _too_fast(table: CostTable, speedup: float, fixed: float, dense: float, least: float) -> InputError:
    return InputError(
        f"a speedup of {speedup:g} is out of reach on {table.engine}: of {fixed + dense:.3g} ms dense, {fixed:.3g} ms "
        f"are not block matrices and those take at least {least:.3g} ms within the cap, so at most "
        f"{(fixed + dense) / (fixed + least):.3g} is possible; ask for less"
    )


def _facts(table: CostTable, fixed: float, dense: float, found: Chosen, speedup: float) -> dict[str, str]:
    """What the plan promises, in milliseconds a decode step, and how near to the optimum it must be."""
    gap = found.damage / found.bound - 1.0 if found.bound > 0.0 else 0.0
    facts = {
        "engine": table.engine,
        "machine": table.machine.fingerprint,
        "threads": str(table.threads),
        "speedup": repr(speedup),
        "dense_ms": f"{fixed + dense:.6g}",
        "predicted_ms": f"{fixed + found.cost:.6g}",
        "predicted_speedup": f"{(fixed + dense) / (fixed + found.cost):.6g}",
        "gap_at_most": f"{max(0.0, gap):.6g}",
    }
    return facts if fixed else facts | {"fixed_ms": "not measured: the speed is that of the block matrices alone"}


def _summary(plans: Sequence[LayerPlan]) -> str:
    names = [str(p.pattern) if isinstance(p.pattern, NM) else p.pattern.kind for p in plans]
    return ", ".join(f"{name} x {names.count(name)}" for name in sorted(set(names)))
