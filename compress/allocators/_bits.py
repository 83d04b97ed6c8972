"""Mixed precision: a mean number of bits, shared out so that heavier tails keep more.

The mirror image of sparsity (AlphaPruning's appendix applies its scores so; the rounding is ours): each unit's target
lies in proportion to the linear map of the *negated* metric, within the smallest and largest choice, with the mean
met exactly; it is rounded down to an allowed number of bits and the largest remainders go up to the next one while
the budget, weighted by parameters, lasts. The mean is never passed, and no unit could go up by one choice without
passing it.

This adds bits to what any sparsity allocator planned. The mean counts the bits of every weight of a matrix, cut or
not: what a bitmask or an index costs, and that zeros are not stored, is the export's business, not the plan's.
"""

from collections import Counter
from dataclasses import replace
from typing import Final

import numpy as np

from tailcut.allocation import Allocation, Bits, Budget, LayerScores
from tailcut.compress.allocators import Settings
from tailcut.compress.allocators._budget import ordered
from tailcut.compress.allocators._steps import apportion, share_out
from tailcut.compress.allocators._values import metric_values

SETTINGS: Final = ("metric", "granularity", "bit_tau")
DEFAULT_TAU: Final = 0.3  # of bits: a mean of 4 then reaches 2.8 to 5.2 before rounding


def with_bits(allocation: Allocation, scores: LayerScores, budget: Budget, settings: Settings) -> Allocation:
    """`allocation` with bits in every plan so that their mean is at most `budget.bits`; unchanged if that is None."""
    if budget.bits is None:
        return allocation
    layers, choices = ordered(scores), sorted(set(budget.bit_choices))
    tau = DEFAULT_TAU if settings.bit_tau is None else settings.bit_tau
    metric, granularity = (settings.metric or "alpha_peak").replace("-", "_"), settings.granularity or "block"
    values = -metric_values(layers, metric) if tau else np.zeros(len(layers))
    bounds = (float(choices[0]), float(choices[-1]))
    shares = share_out(layers, values, granularity, tau, budget.bits, bounds)
    chosen = apportion(shares, choices, budget.bits * float(shares.sizes.sum()), nearest=False)
    bits: dict[str, Bits] = {
        layers[i].name: choices[n] for unit, n in zip(shares.units, chosen, strict=True) for i in unit
    }
    plans = {name: replace(plan, bits=bits[name]) for name, plan in allocation.plans.items()}
    mean = sum(bits[layer.name] * layer.parameters for layer in layers) / sum(layer.parameters for layer in layers)
    counts = Counter(bits.values())
    facts = {
        "bits": repr(budget.bits),
        "bits_planned": f"{mean:.6f}",
        "bit_choices": ",".join(str(choice) for choice in reversed(choices)),
        "bit_counts": ", ".join(f"{choice} x {counts[choice]}" for choice in reversed(choices) if counts[choice]),
        "bit_tau": repr(tau),
        "bit_metric": metric if tau else "none",
    }
    return Allocation(plans, {**allocation.provenance, **facts})
