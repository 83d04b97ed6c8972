"""What a matrix can become, as an ascending list of levels; a plan gives each matrix one of them.

    sparsity   level l loses l * step of the weights, anywhere                a unit is step of the weights
    nm         N:M of one M; each level keeps one weight of M less            a unit is one weight of M
    bits       one sparsity or pattern for all; 8, 4, 3, 2 bits               a unit is a bit a weight

Level 0 is the mildest. Every level saves a whole number of units a weight, so that what a plan saves, the sum over the
matrices of weights times units, is counted exactly. A sparsity is met to rounding of float64 by a last common shift; the
other two have nothing between their levels: zeros are never fewer and bits never more than was asked for, and what is
beyond that is less than any one level of any one matrix could give back.
"""

from dataclasses import dataclass, replace
from math import floor
from typing import Final, Literal, cast

import numpy as np
import numpy.typing as npt

from tailcut.allocation import Budget, Dense, LayerPlan, LayerScores, Unstructured
from tailcut.compress.allocators import Settings, nm_mixed, uniform
from tailcut.compress.allocators._budget import ordered

Levels = npt.NDArray[np.int64]  # [matrices]
ROUNDING: Final = 1e-9  # what float64 may lose of a product or quotient that stands for a whole number


@dataclass(frozen=True, slots=True)
class Ladder:
    """plans[l] is what level l does to a matrix; gains[l], strictly ascending, the units that it saves a weight.

    `unit` is a sparsity, or 1 for bits; `wanted` the mean over all weights of what a plan must save, in the same measure.
    """

    kind: Literal["sparsity", "nm", "bits"]
    plans: tuple[LayerPlan, ...]
    gains: tuple[int, ...]
    unit: float
    wanted: float

    @property
    def top(self) -> int:
        """The highest level."""
        return len(self.plans) - 1

    @property
    def whole(self) -> bool:
        """Whether there is nothing between two levels."""
        return self.kind != "sparsity"

    def units(self, plan: LayerPlan) -> float:
        """What any plan of a matrix saves a weight; between two levels' gains where it is none of them."""
        first = self.plans[0].bits
        saved = first - plan.bits if first is not None and plan.bits is not None else plan.pattern.sparsity
        return saved / self.unit


def ladder_of(scores: LayerScores, budget: Budget, settings: Settings, step: float) -> Ladder:
    """The ladder that the budget asks for; InputError where a matrix does not fit on it. `settings`: see `Task`."""
    if budget.bits is not None:
        return _bits(scores, budget)
    if budget.pattern is not None or settings.group is not None:
        return _nm(scores, budget, settings)
    most = floor(budget.cap / step + ROUNDING)
    plans = tuple(LayerPlan(Unstructured(min(1.0, level * step))) for level in range(most + 1))
    return Ladder("sparsity", plans, tuple(range(most + 1)), step, budget.sparsity)


def _nm(scores: LayerScores, budget: Budget, settings: Settings) -> Ladder:
    group = nm_mixed.group_of(budget, settings)
    nm_mixed.require_groups(ordered(scores), group)
    least, most = (int(bound) for bound in nm_mixed.bounds_of(budget, settings, group))
    removed = tuple(range(least, most + 1))
    plans = tuple(LayerPlan(nm_mixed.pattern_of(count, group)) for count in removed)
    return Ladder("nm", plans, removed, 1.0 / group, budget.sparsity)


def _bits(scores: LayerScores, budget: Budget) -> Ladder:
    even = uniform.allocate(scores, replace(budget, bits=None), Settings())
    pattern = next(iter(even.plans.values())).pattern
    pattern = pattern if pattern.sparsity else Dense()  # nothing to prune: then no pruner's statistics are needed
    choices = sorted(set(budget.bit_choices), reverse=True)
    plans = tuple(LayerPlan(pattern, bits) for bits in choices)
    saved = choices[0] - cast(float, budget.bits)
    return Ladder("bits", plans, tuple(choices[0] - bits for bits in choices), 1.0, saved)
