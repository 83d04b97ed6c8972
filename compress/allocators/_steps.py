"""Arithmetic of allocations in whole steps: real-valued targets within bounds, and Hamilton's rounding of them.

A unit (a block's matrices, or one matrix) takes one of a few levels, such as 1 to 7 of 8 weights removed, or 2, 3,
4 or 8 bits. Targets follow a metric and meet the budget; then each is rounded down and the units with the largest
remainders take one level more, as long as the budget, weighted by parameters, lasts.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from tailcut.allocation import LayerScore
from tailcut.compress.allocators import Granularity
from tailcut.compress.allocators._budget import Vector
from tailcut.compress.allocators._fill import fill
from tailcut.compress.allocators._values import linear_map, members, parameter_counts

Indices = npt.NDArray[np.intp]
# a target that is a level but for rounding counts as that level; float64 sums of 1e11 parameters are far closer
_DUST: Final = 1e-9


@dataclass(frozen=True, slots=True)
class Shares:
    """What each unit should get: positions of its matrices, their parameters, and the target in units of levels."""

    units: tuple[tuple[int, ...], ...]
    sizes: Vector  # [units]
    targets: Vector  # [units]

    def led_by(self, values: Vector) -> "Shares":
        """The units in descending order of `values` [units]: of equal remainders, as among targets that a bound made
        equal, the first is rounded up."""
        order = [int(place) for place in np.argsort(-values, kind="stable")]
        return Shares(tuple(self.units[place] for place in order), self.sizes[order], self.targets[order])


def share_out(
    layers: tuple[LayerScore, ...],
    values: Vector,
    granularity: Granularity,
    tau: float,
    mean: float,
    bounds: tuple[float, float],
) -> Shares:
    """Targets in proportion to the linear map of `values` [layers] (larger gets more), of weighted mean `mean`.

    `bounds` are the least and the most a unit may get, with `mean` between them. block, matrix and mixed mean what
    they mean to the alpha allocator; the units of mixed are matrices. Units come in descending order of their values.
    """
    sizes = parameter_counts(layers)
    single = tuple((index,) for index in range(len(layers)))
    if granularity == "matrix":
        return Shares(single, sizes, _between(linear_map(values, tau), sizes, mean, bounds)).led_by(values)
    blocks = tuple(tuple(indices) for indices in members(layers).values())
    weights = np.array([sizes[list(indices)].sum() for indices in blocks])
    means = np.array([values[list(indices)].mean() for indices in blocks])
    per_block = _between(linear_map(means, tau), weights, mean, bounds)
    if granularity == "block":
        return Shares(blocks, weights, per_block).led_by(means)
    proportions, targets = linear_map(values, tau), np.empty_like(values)
    for indices, target in zip(blocks, per_block, strict=True):
        inside = list(indices)
        targets[inside] = _between(proportions[inside], sizes[inside], float(target), bounds)
    return Shares(single, sizes, targets).led_by(values)


def _between(proportions: Vector, sizes: Vector, mean: float, bounds: tuple[float, float]) -> Vector:
    """clip(eta * proportions, low, high) of weighted mean `mean`; proportions of 0 (tau = 1) rise only after all others."""
    slopes = np.maximum(proportions, _DUST * max(float(proportions.max()), _DUST))
    return fill(np.zeros_like(slopes), slopes, sizes, mean, *bounds)


def apportion(shares: Shares, levels: Sequence[float], total: float, *, nearest: bool) -> Indices:
    """Level index of each unit [units]: targets rounded down, then up again by largest remainder (Hamilton).

    levels ascending; those outside the targets' range are only used if the caller's bounds allowed them. `total` is
    sum(sizes * level) to be met: it is not passed while any single unit could still take its next level, and with
    `nearest` passed by one unit if that comes closer. Equal remainders go to the earlier unit.
    """
    steps, sizes = np.array(levels, np.float64), shares.sizes
    below = np.searchsorted(steps, shares.targets + _DUST * steps[-1], side="right") - 1
    chosen: Indices = np.maximum(below, 0)
    dust = _DUST * max(total, 1.0)
    while True:
        after = np.minimum(chosen + 1, len(steps) - 1)
        costs = np.where(after > chosen, sizes * (steps[after] - steps[chosen]), np.inf)
        left = total - float((sizes * steps[chosen]).sum())
        fits = costs <= left + dust
        if not fits.any():
            break
        chosen[_first(_remainders(shares.targets, steps, chosen), fits)] += 1
    if nearest and costs.min() < 2.0 * left - dust:
        chosen[_first(_remainders(shares.targets, steps, chosen), costs == costs.min())] += 1
    return chosen


def _remainders(targets: Vector, steps: Vector, chosen: Indices) -> Vector:
    """How far each target lies on the way from its level to the next (negative once it was rounded up)."""
    after = np.minimum(chosen + 1, len(steps) - 1)
    return np.asarray((targets - steps[chosen]) / np.where(after > chosen, steps[after] - steps[chosen], 1.0))


def _first(remainders: Vector, among: npt.NDArray[np.bool_]) -> int:
    """The earliest of the largest remainders, dust apart: equal units must not be told apart by rounding errors."""
    candidates = np.where(among, remainders, -np.inf)
    return int(np.argmax(candidates >= candidates.max() - _DUST))
