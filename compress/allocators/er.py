"""Erdős-Rényi: density in proportion to (inputs + outputs) / (inputs * outputs), so that small matrices keep more.

    d_i = min(1, e * (in_i + out_i) / (in_i out_i)),   e so that sum(N d) = (1 - S) sum(N)

(SET, 2018; RigL, ICML 2020, for the matrices that become dense.) Where d_i would pass 1 the matrix
stays dense and e is found again for the rest; where it would fall below 1 - cap it stays there.
"""

from typing import Final

import numpy as np

from tailcut.allocation import Allocation, Budget, LayerScores
from tailcut.compress.allocators import Settings
from tailcut.compress.allocators._budget import ordered, origin, plan
from tailcut.compress.allocators._fill import fill
from tailcut.compress.allocators._values import by_name, parameter_counts, refuse_pattern

METRICS: Final = ()
SETTINGS: Final = ()


def allocate(scores: LayerScores, budget: Budget, settings: Settings) -> Allocation:
    """Keeps weights in proportion to a matrix's inputs plus outputs, so that small matrices lose less and may stay
    dense (grouped-query keys and values often do). Needs only shapes. SET, 2018; RigL, ICML 2020.
    No settings. A baseline that looks at no weight; the MLP pays for the attention.
    """
    return allocate_as("er", scores, budget)


def allocate_as(name: str, scores: LayerScores, budget: Budget) -> Allocation:
    """The plan under the name of the allocator that asks for it."""
    refuse_pattern(name, budget)
    layers = ordered(scores)
    parameters = parameter_counts(layers)
    shares = np.array([sum(layer.shape) / layer.parameters for layer in layers])
    densities = fill(np.zeros_like(shares), shares, parameters, 1.0 - budget.sparsity, 1.0 - budget.cap, 1.0)
    sparsities = np.clip(1.0 - densities, 0.0, budget.cap)  # 1 - (1 - cap) may round above the cap
    return plan(scores, by_name(layers, sparsities), origin(name, scores, budget))
