"""Mixed precision: a mean number of bits, shared out so that heavier tails keep more.

The mirror image of sparsity (AlphaPruning's appendix applies its scores so; the arithmetic is ours). The choices are
the rungs of a ladder, such as 2, 3, 4 and 8 bits, and a unit's target is a place on it:

    place_i = c + (rungs - 1) (t_i - 1)        t_i: the linear map of the *negated* metric on [1 - tau, 1 + tau]

with bits linear between two rungs and c such that the weighted mean of the bits is met exactly. (The map on bits
themselves would reach 8 from a mean of 4 only for tau = 1, and Hamilton's rounding would make nearly all of it 4.)
Targets are rounded down to a rung and those with the largest remainders go up to the next one while the budget,
weighted by parameters, lasts. The mean is never passed, and no unit could go up by one rung without passing it.
Units are blocks (granularity block) or matrices (matrix; mixed, where t_i is the mean of the block's and its own).

This adds bits to what any sparsity allocator planned. The mean counts the bits of every weight of a matrix, cut or
not: what a bitmask or an index costs, and that zeros are not stored, is the export's business, not the plan's.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Final

import numpy as np

from tailcut.allocation import Allocation, Bits, Budget, LayerPlan, LayerScore, LayerScores
from tailcut.compress.allocators import Granularity, Settings
from tailcut.compress.allocators._budget import Vector, ordered
from tailcut.compress.allocators._steps import Shares, apportion
from tailcut.compress.allocators._values import linear_map, members, metric_values, parameter_counts

SETTINGS: Final = ("metric", "granularity", "bit_tau")
DEFAULT_TAU: Final = 0.3  # with four choices: places within 0.9 of a rung about the centre
_HALVINGS: Final = 80  # of an interval of a few rungs: to the last bit of a float64


def with_bits(allocation: Allocation, scores: LayerScores, budget: Budget, settings: Settings) -> Allocation:
    """`allocation` with bits in every plan so that their mean is at most `budget.bits`; unchanged if that is None."""
    if budget.bits is None:
        return allocation
    layers, choices = ordered(scores), sorted(set(budget.bit_choices))
    tau = DEFAULT_TAU if settings.bit_tau is None else settings.bit_tau
    metric, granularity = (settings.metric or "alpha_peak").replace("-", "_"), settings.granularity or "block"
    values = -metric_values(layers, metric) if tau else np.zeros(len(layers))
    shares = _share_out(layers, values, granularity, tau, choices, budget.bits)
    chosen = apportion(shares, choices, budget.bits * float(shares.sizes.sum()), nearest=False)
    bits: dict[str, Bits] = {
        layers[i].name: choices[n] for unit, n in zip(shares.units, chosen, strict=True) for i in unit
    }
    plans = {name: replace(plan, bits=bits[name]) for name, plan in allocation.plans.items()}
    facts = facts_of(plans, layers, budget) | {"bit_tau": repr(tau), "bit_metric": metric if tau else "none"}
    return Allocation(plans, {**allocation.provenance, **facts})


def facts_of(plans: Mapping[str, LayerPlan], layers: Sequence[LayerScore], budget: Budget) -> dict[str, str]:
    """What the provenance says of bits: what was asked for, and what the plans have."""
    counts = Counter(plan.bits for plan in plans.values())
    total = sum((plans[layer.name].bits or 0) * layer.parameters for layer in layers)
    choices = sorted(set(budget.bit_choices), reverse=True)
    return {
        "bits": repr(budget.bits),
        "bits_planned": f"{total / sum(layer.parameters for layer in layers):.6f}",
        "bit_choices": ",".join(str(choice) for choice in choices),
        "bit_counts": ", ".join(f"{choice} x {counts[choice]}" for choice in choices if counts[choice]),
    }


def _share_out(
    layers: tuple[LayerScore, ...], values: Vector, granularity: Granularity, tau: float, rungs: list[Bits], mean: float
) -> Shares:
    """Units with their parameters and their targets in bits."""
    sizes, blocks = parameter_counts(layers), list(members(layers).values())
    of_block = linear_map(np.array([values[indices].mean() for indices in blocks]), tau)
    if granularity == "block":
        units = tuple(tuple(indices) for indices in blocks)
        weights = np.array([sizes[indices].sum() for indices in blocks])
        return Shares(units, weights, _targets(of_block, weights, rungs, mean)).led_by(of_block)
    mapped = linear_map(values, tau)
    if granularity == "mixed":
        for indices, value in zip(blocks, of_block, strict=True):
            mapped[indices] = (mapped[indices] + value) / 2.0
    units = tuple((index,) for index in range(len(layers)))
    return Shares(units, sizes, _targets(mapped, sizes, rungs, mean)).led_by(mapped)


def _targets(mapped: Vector, sizes: Vector, rungs: list[Bits], mean: float) -> Vector:
    """Bits of each unit whose weighted mean is `mean`: places on the ladder about a centre found by bisection."""
    places, top = np.arange(len(rungs)), len(rungs) - 1
    offsets = top * (mapped - 1.0)

    def bits(centre: float) -> Vector:
        return np.asarray(np.interp(centre + offsets, places, rungs), np.float64)  # np.interp clips to the ladder

    low, high = -float(offsets.max()), top - float(offsets.min())
    for _ in range(_HALVINGS):
        middle = (low + high) / 2.0
        low, high = (low, middle) if np.average(bits(middle), weights=sizes) >= mean else (middle, high)
    return bits(high)
