"""Plans as whole levels: matrix i is at level levels_i of the ladder.

Levels and what they save are integers, so that a plan's savings are counted exactly and a level of a matrix is cut
once. A plan on the grid saves at least the budget, and too much by less than one level of the smallest matrix where no
bound forbids it, never by a level of the largest; of sparsities a common shift takes that back.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil
from typing import Final

import numpy as np

from tailcut.allocation import Allocation, Budget, LayerPlan, LayerScores, Unstructured
from tailcut.compress.allocators import Settings
from tailcut.compress.allocators._budget import Vector
from tailcut.compress.allocators._fill import fill
from tailcut.compress.searches._ladder import ROUNDING, Ladder, Levels, ladder_of
from tailcut.errors import InputError

_DEFAULT: Final = Settings()


@dataclass(frozen=True, slots=True)
class Grid:
    """The matrices in the scores' order, what each may become, and what a plan over them must keep."""

    names: tuple[str, ...]
    blocks: tuple[int, ...]
    kinds: tuple[str, ...]  # what a matrix is called inside its block
    sizes: Levels  # weights of each
    budget: Budget
    ladder: Ladder

    @property
    def goal(self) -> int:
        """Units times weights that a plan must save."""
        wanted = self.ladder.wanted * float(self.sizes.sum()) / self.ladder.unit
        return ceil(wanted * (1.0 - ROUNDING))

    @property
    def coarsest(self) -> int:
        """Units times weights of the largest level of the largest matrix."""
        return int(self.sizes.max()) * int(np.diff(self.ladder.gains).max(initial=1))

    def excess(self, levels: Levels) -> int:
        """Units times weights beyond the goal."""
        return int(self.sizes @ np.array(self.ladder.gains)[levels]) - self.goal

    def plans(self, levels: Levels) -> dict[str, LayerPlan]:
        """The plan that meets the budget, by module name: of sparsities exactly, else that of the levels."""
        if self.ladder.whole:
            return {name: self.ladder.plans[level] for name, level in zip(self.names, levels.tolist(), strict=True)}
        base = np.clip(levels * self.ladder.unit, 0.0, self.budget.cap)
        counts = self.sizes.astype(np.float64)
        exact = fill(base, np.ones_like(base), counts, self.budget.sparsity, 0.0, self.budget.cap)
        return {name: LayerPlan(Unstructured(float(value))) for name, value in zip(self.names, exact, strict=True)}

    def snap(self, wanted: Vector) -> Levels:
        """Units a weight [matrices] -> the plan on the grid that is nearest: rounded down, then up where most was lost."""
        gains = np.array(self.ladder.gains)
        levels = np.maximum(np.searchsorted(gains, wanted + ROUNDING, side="right") - 1, 0).astype(np.int64)
        order = np.argsort(gains[levels] - wanted, kind="stable")
        return settle(self, levels, order.tolist())

    def even(self) -> Levels:
        """The plan that is nearest to the same for every matrix."""
        return self.snap(np.full(len(self.names), self.ladder.wanted / self.ladder.unit))

    def of(self, allocation: Allocation) -> Levels:
        """An allocation on the grid."""
        return self.snap(np.array([self.ladder.units(allocation.plans[name]) for name in self.names]))

    def fitted(self, allocation: Allocation) -> Allocation:
        """The allocation as it may be among the finals: itself if it meets the budget exactly, else on the grid."""
        if not self.ladder.whole:
            return allocation
        return Allocation(self.plans(self.of(allocation)), allocation.provenance)


def make_grid(scores: LayerScores, budget: Budget, step: float, settings: Settings = _DEFAULT) -> Grid:
    """InputError where no plan on the grid can meet the budget. `settings`: see `Task`."""
    grid = Grid(
        tuple(layer.name for layer in scores.layers),
        tuple(layer.block for layer in scores.layers),
        tuple(kind_of(layer.name, layer.block) for layer in scores.layers),
        np.array([layer.parameters for layer in scores.layers], np.int64),
        budget,
        ladder_of(scores, budget, settings, step),
    )
    if grid.ladder.gains[-1] * int(grid.sizes.sum()) < grid.goal:
        raise InputError(
            f"a sparsity of {budget.sparsity} is beyond the last step of {step} below the cap of {budget.cap}; "
            "search in smaller steps"
        )
    return grid


def kind_of(name: str, block: int) -> str:
    """model.layers.3.mlp.up_proj of block 3 -> mlp.up_proj."""
    return name.rpartition(f".{block}.")[2]


def settle(grid: Grid, levels: Levels, order: Sequence[int]) -> Levels:
    """Levels moved one at a time, of the matrices in `order` in turn, until the goal is met.

    Raises what fits into what is missing; then, if that leaves a surplus, lowers what fits into it. Matrices outside
    `order` stay, so that the goal may be missed where these cannot meet it.
    """
    result, turn = levels.copy(), list(order)
    sizes, gains = grid.sizes.tolist(), grid.ladder.gains
    excess = grid.excess(result)
    while excess != 0:
        step = 1 if excess < 0 else -1
        after = {index: int(result[index]) + step for index in turn}
        costs = {
            index: sizes[index] * abs(gains[level] - gains[level - step])
            for index, level in after.items()
            if 0 <= level <= grid.ladder.top
        }
        fitting = next((index for index, cost in costs.items() if cost <= abs(excess)), None)
        if fitting is None and excess < 0 and costs:
            fitting = min(costs, key=costs.__getitem__)
        if fitting is None:
            break
        result[fitting] += step
        excess += step * costs[fitting]
        turn.remove(fitting)
        turn.append(fitting)
    return result
