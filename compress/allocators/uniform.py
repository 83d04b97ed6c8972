"""The same sparsity, or the same N:M pattern, for every matrix: the baseline every other allocation is read against."""

from typing import Final

from tailcut.allocation import NM, Allocation, Budget, LayerPlan, LayerScores, Unstructured
from tailcut.compress.allocators import Settings
from tailcut.compress.allocators._budget import ordered, origin
from tailcut.errors import InputError

METRICS: Final = ()
SETTINGS: Final = ()


def allocate(scores: LayerScores, budget: Budget, settings: Settings) -> Allocation:
    """The same sparsity for every matrix, or with --pattern the same N:M pattern. Needs only shapes. No settings.
    What every other allocator is read against; at 50 % and below hard to beat.
    """
    ordered(scores)
    pattern: NM | Unstructured = Unstructured(budget.sparsity)
    if budget.pattern is not None:
        pattern = _fitting(scores, budget, budget.pattern)
    return Allocation({layer.name: LayerPlan(pattern) for layer in scores.layers}, origin("uniform", scores, budget))


def _fitting(scores: LayerScores, budget: Budget, pattern: NM) -> NM:
    if abs(pattern.sparsity - budget.sparsity) > 1e-9:
        raise InputError(
            f"pattern {pattern} has sparsity {pattern.sparsity:g}, the budget says {budget.sparsity:g}; give one of them"
        )
    for layer in scores.layers:
        if layer.shape[1] % pattern.block:
            raise InputError(
                f"{layer.name}: {layer.shape[1]} inputs are not a multiple of {pattern.block}, which {pattern} needs; "
                "use an unstructured sparsity"
            )
    return pattern
