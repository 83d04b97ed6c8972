"""ALS: what is redundant loses more (Adaptive Layer Sparsity, NeurIPS 2024).

How redundant two units are is read off their input activations (pairs `als.block` between blocks, `als` between
matrices); _als.py has the formulas. Two levels: blocks share the model's budget, then the matrices of a block share
the block's (granularity mixed, the default). `block` stops after the first level, `matrix` has the second only.

    lp   maximise sum(c_i d_i) with sum(N_i d_i) within the budget and sparsities inside the bounds, as published.
         The paper calls the variable sparsity; with a size limit only the kept fraction d makes sense (its parent,
         OMPQ, maximises bit-width). Such a program puts every block on a bound except one. Published bounds: 0.3 to
         0.7 for 30 to 70 %, 0.1 to 0.3 at 20 %; elsewhere ours narrow towards 0 and 1. Where the budget is
         itself a bound (30 and 70 %) the only solution is the uniform plan; and inside a block that is on a bound
         the second level changes nothing. Sparsities lie on a grid of 0.5 %, but for what keeps the budget exact.
    qp   stretches the importances to [0, 1] and adds the regulariser -8 (d_i - D)^2 to every unit, weighted by
         parameters: continuous, sparsities at most 1/16 apart at each level, no bounds and no grid unless asked for. Ours,
         after DSA by the same group.

The published importance averages a block with all after it; matrices of a block have no such order, there each
stands for itself. What the paper's "feature norm" and "weight norm" divide by is not published, nor used here.
"""

from dataclasses import dataclass
from typing import Final

import numpy as np

from tailcut.allocation import Allocation, Budget, LayerScore, LayerScores
from tailcut.compress.allocators import Settings, Solver
from tailcut.compress.allocators._als import importances, on_grid, solve_lp, solve_qp
from tailcut.compress.allocators._budget import Vector, ordered, origin, plan
from tailcut.compress.allocators._values import by_name, members, pairs_of, parameter_counts, refuse_pattern
from tailcut.errors import InputError

METRICS: Final = ("als",)
SETTINGS: Final = ("solver", "granularity", "bounds", "step")
_PUBLISHED: Final = (0.3, 0.7)
_STEP: Final = 0.005


def allocate(scores: LayerScores, budget: Budget, settings: Settings) -> Allocation:
    """Blocks, and then the matrices in them, whose inputs resemble those of others lose more, solved as a linear
    program (solver lp, as published) or a quadratic one (qp, ours). Needs the als redundancies, that is calibration
    text. Adaptive Layer Sparsity, NeurIPS 2024. Default solver: lp; granularity: mixed (both levels; block and
    matrix are one each); bounds: for lp 0.3 to 0.7 for budgets of 30 to 70 %, narrower outside; step: 0.005
    for lp; neither for qp. lp at exactly 30 or 70 % is the uniform plan; prefer qp, or other bounds, there.
    """
    refuse_pattern("als", budget)
    layers = ordered(scores)
    rules = _rules(budget, settings)
    granularity = settings.granularity or "mixed"
    if granularity == "matrix":
        sparsities = rules.share(_of_matrices(scores, layers), parameter_counts(layers), budget.sparsity)
    else:
        sparsities = _by_block(scores, layers, budget.sparsity, rules, inside=granularity == "mixed")
    said = {"solver": rules.solver, "granularity": granularity, "step": repr(rules.step)}
    source = origin("als", scores, budget, **said, bounds=f"{rules.low!r} {rules.high!r}")
    return plan(scores, by_name(layers, sparsities), source)


@dataclass(frozen=True, slots=True)
class _Rules:
    """How any set of units shares a budget."""

    solver: Solver
    low: float
    high: float
    step: float | None

    def share(self, values: Vector, parameters: Vector, sparsity: float) -> Vector:
        """Importances and parameter counts [units] -> sparsities [units] with the weighted mean `sparsity`."""
        solve = solve_lp if self.solver == "lp" else solve_qp
        solved = solve(values, parameters, sparsity, self.low, self.high)
        return solved if self.step is None else on_grid(solved, parameters, self.step, self.low, self.high)


def _rules(budget: Budget, settings: Settings) -> _Rules:
    solver = settings.solver or "lp"
    usual = default_bounds(budget.sparsity) if solver == "lp" else (0.0, 1.0)
    low, high = usual if settings.bounds is None else settings.bounds
    high = min(high, budget.cap)
    if not low <= budget.sparsity <= high:
        raise InputError(
            f"a global sparsity of {budget.sparsity} cannot be met when every matrix is to lose {low} to {high}; "
            "give wider bounds"
        )
    step = _STEP if settings.step is None and solver == "lp" else settings.step
    return _Rules(solver, low, high, step)


def default_bounds(sparsity: float) -> tuple[float, float]:
    """Of lp: 0.3 to 0.7 where the budget is between; below, half of it around it (0.1 to 0.3 at 20 %); above, towards 1."""
    if sparsity < _PUBLISHED[0]:
        return sparsity / 2.0, sparsity * 1.5
    if sparsity > _PUBLISHED[1]:
        return sparsity - (1.0 - sparsity) / 2.0, sparsity + (1.0 - sparsity) / 2.0
    return _PUBLISHED


def _by_block(
    scores: LayerScores, layers: tuple[LayerScore, ...], sparsity: float, rules: _Rules, *, inside: bool
) -> Vector:
    """Sparsity of each layer [layers]: blocks share the budget, and `inside` them their matrices."""
    counts, blocks = parameter_counts(layers), list(members(layers).values())
    redundancy = pairs_of(scores, layers, "als.block")
    first = [indices[0] for indices in blocks]  # every matrix of a block carries the block's redundancies
    values = importances(redundancy[np.ix_(first, first)], trailing=True)
    levels = rules.share(values, np.array([counts[indices].sum() for indices in blocks]), sparsity)
    result = np.empty(len(layers))
    for level, indices in zip(levels, blocks, strict=True):
        chosen = tuple(layers[index] for index in indices)
        result[indices] = rules.share(_of_matrices(scores, chosen), counts[indices], float(level)) if inside else level
    return result


def _of_matrices(scores: LayerScores, layers: tuple[LayerScore, ...]) -> Vector:
    return importances(pairs_of(scores, layers, "als"), trailing=False)
