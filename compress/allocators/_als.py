"""What ALS computes from redundancies: importances, and the two ways to share a budget out by them.

Redundancy R_ij in [0, 1] says how much alike the inputs of two units (blocks or matrices) are; 1 is the same.

    rho_i   = sum_j R_ij - 1,   mu_i = (1 / n) sum_j R_ij,   omega_i = exp(-rho_i / mu_i)
    c_i     = mean of omega_j over j >= i

(ALS, NeurIPS 2024, section 3.2; OMPQ, whose code it builds on.) n R-rows of 1 give rho / mu = n - 1: the exponentials
of 224 matrices would underflow, so omega is scaled to a largest value of 1, which no solution depends on.
"""

import numpy as np

from tailcut.compress.allocators._budget import Vector
from tailcut.compress.allocators._fill import fill

_SAME = 1e-9  # importances that differ by less, relatively, are equal but for rounding
REGULARISER = 8.0


def importances(redundancy: Vector, *, trailing: bool) -> Vector:
    """Redundancies [units, units] -> importance c of each unit [units], the largest omega being 1.

    `trailing` averages omega over the unit and all after it, as published; units must then be in depth order.
    """
    others = redundancy.sum(axis=1) - np.diag(redundancy)
    mean = redundancy.mean(axis=1)
    exponents = np.divide(others, mean, out=np.zeros_like(others), where=mean > 0.0)
    omega = np.exp(exponents.min() - exponents)
    if not trailing:
        return np.asarray(omega)
    return np.asarray(np.cumsum(omega[::-1])[::-1] / np.arange(omega.size, 0, -1))


def solve_lp(values: Vector, parameters: Vector, sparsity: float, low: float, high: float) -> Vector:
    """Sparsities in [low, high] that maximise sum(c d), d = 1 - s, with sum(N d) = (1 - S) sum(N): a knapsack.

    Units with the most importance a parameter are kept first; those whose ratios are equal share what is left evenly.
    All units but those of one such group end on a bound.
    """
    ratios = values / parameters
    result = np.full(values.shape, high)
    left = (high - sparsity) * parameters.sum()  # weights still to be kept, above 1 - high everywhere
    waiting = np.ones(values.shape, bool)
    while waiting.any() and left > 0.0:
        group = waiting & (ratios >= ratios[waiting].max() * (1.0 - _SAME))
        size = parameters[group].sum()
        kept = min(left, (high - low) * size)
        result[group] = high - kept / size
        left -= kept
        waiting &= ~group
    return np.asarray(np.clip(result, low, high), np.float64)


def solve_qp(values: Vector, parameters: Vector, sparsity: float, low: float, high: float) -> Vector:
    """Sparsities in [low, high] that maximise sum(N (c d - g (d - D)^2)), D = 1 - S, under the same budget.

    c are the values stretched to [0, 1] (their scale is arbitrary and often tiny for all but one); g is 8, as in DSA, the
    same group's later allocator. The optimum is d = D + (c - m) / (2 g) between the bounds: sparsities 1/16 apart
    at most. Unlike `solve_lp` this is continuous in the values, and equal ones give the uniform plan.
    """
    span = np.ptp(values)
    stretched = (values - values.min()) / span if span > _SAME * np.abs(values).max() else np.zeros_like(values)
    wanted = sparsity - stretched / (2.0 * REGULARISER)
    return fill(wanted, np.ones_like(wanted), parameters, sparsity, low, high)


def on_grid(sparsities: Vector, parameters: Vector, step: float, low: float, high: float) -> Vector:
    """Sparsities moved to multiples of `step` inside [low, high], but for the few that keep the weighted mean exact.

    Every unit goes down to its multiple (or to `low`); what that leaves is given out a whole step at a time, to
    the largest remainders first, and the last part of a step to units that have room for it.
    """
    floors = np.floor(sparsities / step + _SAME)
    result, up = np.maximum(floors * step, low), (floors + 1.0) * step
    left = float(parameters @ (sparsities - result))
    for index in np.argsort(result - sparsities, kind="stable"):
        cost = float((up[index] - result[index]) * parameters[index])
        if cost <= left and up[index] <= high:
            result[index] = up[index]
            left -= cost
    for index in np.argsort(-parameters, kind="stable"):  # a large unit moves least for the same weights
        moved = float(np.clip(left / parameters[index], low - result[index], high - result[index]))
        result[index] += moved
        left -= moved * parameters[index]
    return np.clip(result, low, high)
