"""Plans as whole levels: matrix i loses levels_i * step of its weights.

Levels are integers, so that the weights a plan removes are counted exactly and a level of a matrix is pruned once. A
plan on the grid removes at least the budget, and too much by less than one level of the smallest matrix where no bound
forbids it, never by a level of the largest; `exact` takes that back with a common shift.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import ceil, floor
from typing import Final

import numpy as np
import numpy.typing as npt

from tailcut.allocation import Allocation, Budget, LayerScores
from tailcut.compress.allocators._fill import fill
from tailcut.errors import InputError

Levels = npt.NDArray[np.int64]  # [matrices]
_ROUNDING: Final = 1e-9  # what float64 may lose of a product or quotient that stands for a whole number


@dataclass(frozen=True, slots=True)
class Grid:
    """The matrices in the scores' order, and what a plan over them must keep."""

    names: tuple[str, ...]
    blocks: tuple[int, ...]
    kinds: tuple[str, ...]  # what a matrix is called inside its block
    sizes: Levels  # weights of each
    budget: Budget
    step: float

    @property
    def most(self) -> int:
        """The highest level."""
        return floor(self.budget.cap / self.step + _ROUNDING)

    @property
    def goal(self) -> int:
        """Levels times weights that a plan must reach."""
        wanted = self.budget.sparsity * float(self.sizes.sum()) / self.step
        return ceil(wanted * (1.0 - _ROUNDING))

    def excess(self, levels: Levels) -> int:
        """Levels times weights beyond the goal."""
        return int(self.sizes @ levels) - self.goal

    def sparsities(self, levels: Levels) -> dict[str, float]:
        """The plan that meets the budget exactly, by module name."""
        base = np.clip(levels * self.step, 0.0, self.budget.cap)
        counts = self.sizes.astype(np.float64)
        exact = fill(base, np.ones_like(base), counts, self.budget.sparsity, 0.0, self.budget.cap)
        return {name: float(value) for name, value in zip(self.names, exact, strict=True)}

    def snap(self, sparsities: Mapping[str, float]) -> Levels:
        """The plan on the grid that is nearest: rounded down, then up where most was lost."""
        wanted = np.array([sparsities[name] for name in self.names]) / self.step
        levels = np.clip(np.floor(wanted + _ROUNDING), 0, self.most).astype(np.int64)
        order = np.argsort(levels - wanted, kind="stable")
        return settle(self, levels, order.tolist())

    def of(self, allocation: Allocation) -> Levels:
        """An allocation on the grid."""
        return self.snap({name: plan.pattern.sparsity for name, plan in allocation.plans.items()})


def make_grid(scores: LayerScores, budget: Budget, step: float) -> Grid:
    """InputError where no plan on the grid can meet the budget."""
    grid = Grid(
        tuple(layer.name for layer in scores.layers),
        tuple(layer.block for layer in scores.layers),
        tuple(kind_of(layer.name, layer.block) for layer in scores.layers),
        np.array([layer.parameters for layer in scores.layers], np.int64),
        budget,
        step,
    )
    if grid.most * int(grid.sizes.sum()) < grid.goal:
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
    excess = grid.excess(result)
    while excess != 0:
        step = 1 if excess < 0 else -1
        movable = [index for index in turn if 0 <= result[index] + step <= grid.most]
        fitting = next((index for index in movable if grid.sizes[index] <= abs(excess)), None)
        if fitting is None and excess < 0 and movable:
            fitting = min(movable, key=lambda index: int(grid.sizes[index]))
        if fitting is None:
            break
        result[fitting] += step
        excess += step * int(grid.sizes[fitting])
        turn.remove(fitting)
        turn.append(fitting)
    return result
