"""One option for every item, at least damage, within a limit on cost: the multiple-choice knapsack, by its hull.

Of each item only the options on the lower convex hull of (cost, damage) are steps worth taking in a mixture. Taking
the steps of all items in order of damage per cost saved solves the linear relaxation but for the last step, of which
only a part would be needed; that gives a bound below which no choice can be. The last saving is then made by the
single change, of any item to any option, that reaches the limit with the least damage. Hence

    bound <= damage of the best choice <= damage of this one <= bound + damage of one step
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from tailcut.compress.allocators._budget import Vector


@dataclass(frozen=True, slots=True)
class Chosen:
    """The option of each item, their sums, and `bound`, below which the damage of no choice within the limit lies."""

    options: tuple[int, ...]
    cost: float
    damage: float
    bound: float
    last_step: float  # damage of the last hull step: the gap to the bound is at most this


def choose(costs: Sequence[Vector], damages: Sequence[Vector], limit: float) -> Chosen | None:
    """costs[i], damages[i]: the options of item i. None if even the cheapest options pass the limit.

    Sums are compared with a slack of 1e-9 of the limit. Ties go to the earlier item and option.
    """
    hulls = [_hull(cost, damage) for cost, damage in zip(costs, damages, strict=True)]
    options = [hull[0] for hull in hulls]
    total = sum(float(cost[option]) for cost, option in zip(costs, options, strict=True))
    harm = sum(float(damage[option]) for damage, option in zip(damages, options, strict=True))
    enough, last = limit * (1.0 + 1e-9), 0.0
    for rate, item, before, after in _steps(hulls, costs, damages):
        if total <= enough:
            break
        saving = float(costs[item][before] - costs[item][after])
        if total - saving <= enough:
            bound, last = harm + rate * (total - limit), rate * saving
            place, option = _last_change(costs, damages, options, total - enough, (last, item, after))
            options[place] = option
            return _chosen(options, costs, damages, bound, last)
        options[item] = after
        total, harm = total - saving, harm + rate * saving
    return _chosen(options, costs, damages, harm, 0.0) if total <= enough else None


def _hull(cost: Vector, damage: Vector) -> list[int]:
    """Options from the least damage (of those the cheapest) to the least cost, damage per saving rising strictly."""
    order = sorted(range(len(cost)), key=lambda option: (damage[option], cost[option], option))
    hull: list[int] = []
    for option in order:
        if hull and cost[option] >= cost[hull[-1]]:
            continue
        while len(hull) > 1 and _rate(cost, damage, hull[-2], hull[-1]) >= _rate(cost, damage, hull[-1], option):
            hull.pop()
        hull.append(option)
    return hull


def _rate(cost: Vector, damage: Vector, before: int, after: int) -> float:
    return float((damage[after] - damage[before]) / (cost[before] - cost[after]))


def _steps(
    hulls: Sequence[list[int]], costs: Sequence[Vector], damages: Sequence[Vector]
) -> list[tuple[float, int, int, int]]:
    """(damage per cost saved, item, option before, option after), least harmful first."""
    steps = [
        (_rate(costs[item], damages[item], before, after), item, before, after)
        for item, hull in enumerate(hulls)
        for before, after in pairwise(hull)
    ]
    return sorted(steps, key=lambda step: step[:2])  # stable: the steps of one item stay in order


def _last_change(
    costs: Sequence[Vector],
    damages: Sequence[Vector],
    options: Sequence[int],
    missing: float,
    best: tuple[float, int, int],
) -> tuple[int, int]:
    """The item and option that save at least `missing` with the least further damage; `best` is one that does."""
    for item, now in enumerate(options):
        further = np.where(costs[item][now] - costs[item] >= missing, damages[item] - damages[item][now], np.inf)
        option = int(np.argmin(further))
        if further[option] < best[0]:
            best = (float(further[option]), item, option)
    return best[1], best[2]


def _chosen(
    options: list[int], costs: Sequence[Vector], damages: Sequence[Vector], bound: float, last: float
) -> Chosen:
    cost = sum(float(values[option]) for values, option in zip(costs, options, strict=True))
    damage = sum(float(values[option]) for values, option in zip(damages, options, strict=True))
    return Chosen(tuple(options), cost, damage, bound, last)
