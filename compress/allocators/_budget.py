"""Arithmetic that allocators share: meeting a budget exactly under a cap, and saying where a plan came from."""

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from tailcut.allocation import Allocation, Budget, LayerPlan, LayerScore, LayerScores, Unstructured
from tailcut.errors import InputError

Vector = npt.NDArray[np.float64]


def ordered(scores: LayerScores) -> tuple[LayerScore, ...]:
    """The layers sorted by name, so that float sums, and with them the plan, do not depend on their order."""
    if not scores.layers:
        raise InputError("the scores name no layers; measure a model first (tailcut measure)")
    for layer in scores.layers:
        if layer.parameters <= 0:
            raise InputError(f"{layer.name}: shape {layer.shape} holds no weights; measure the model again")
    return tuple(sorted(scores.layers, key=lambda layer: layer.name))


def water_fill(proportions: Vector, parameters: Vector, sparsity: float, cap: float) -> Vector:
    """Sparsities s = min(cap, eta * proportions) with sum(parameters * s) = sparsity * sum(parameters).

    All vectors [units], float64; proportions >= 0. AlphaPruning's closed form eta = S sum(N) / sum(N t) where
    no unit reaches the cap; else units that would pass it are set to it and eta is solved again for the rest.
    Needs sparsity <= cap, which `Budget` guarantees.
    """
    result = np.full(proportions.shape, cap)
    free = np.ones(proportions.shape, bool)
    while free.any():
        left = sparsity * parameters.sum() - cap * parameters[~free].sum()
        weight = float((parameters * proportions)[free].sum())
        # proportions may all be zero among the rest (tau = 1): what is left is then shared evenly
        eta = left / weight if weight > 0.0 else left / parameters[free].sum()
        wanted = eta * proportions if weight > 0.0 else np.full(proportions.shape, eta)
        over = free & (wanted > cap)
        if not over.any():
            result[free] = np.maximum(wanted[free], 0.0)
            break
        free &= ~over
    return result


def plan(scores: LayerScores, sparsities: Mapping[str, float], provenance: Mapping[str, str]) -> Allocation:
    """Sparsity by module name -> an allocation in the scores' own order."""
    plans = {layer.name: LayerPlan(Unstructured(sparsities[layer.name])) for layer in scores.layers}
    return Allocation(plans, provenance)


def origin(allocator: str, scores: LayerScores, budget: Budget, **more: str) -> dict[str, str]:
    """The provenance every allocation carries; `scores` is the fingerprint of the measured model."""
    pattern = {} if budget.pattern is None else {"pattern": str(budget.pattern)}
    base = {"allocator": allocator, "sparsity": repr(budget.sparsity), "cap": repr(budget.cap)}
    return base | pattern | more | {"scores": scores.model}
