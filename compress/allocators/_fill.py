"""Meeting a budget exactly between two bounds, when every unit's value rises with one common number."""

import numpy as np

from tailcut.compress.allocators._budget import Vector


def fill(base: Vector, slope: Vector, parameters: Vector, mean: float, low: float, high: float) -> Vector:
    """x_i = min(high, max(low, base_i + m slope_i)) with the m that makes sum(N x) = mean * sum(N) (water-filling).

    All vectors [units], float64; slope > 0; low <= mean <= high. The weighted mean is piecewise linear in m:
    it is evaluated wherever a unit meets a bound, and interpolated between the two such points around `mean`.
    """
    turns = np.unique(np.concatenate([(low - base) / slope, (high - base) / slope]))
    turns = np.concatenate([[-np.inf], turns, [np.inf]])
    values = np.clip(base + turns[:, None] * slope, low, high)  # [turns, units]
    return between(values, values @ parameters / parameters.sum(), mean)


def between(values: Vector, means: Vector, mean: float) -> Vector:
    """Rows of rising values [points, units], their weighted means [points] -> the mixture of two rows with `mean`."""
    upper = int(np.clip(np.searchsorted(means, mean), 1, len(means) - 1))
    below, above = values[upper - 1], values[upper]
    step = means[upper] - means[upper - 1]
    share = np.clip((mean - means[upper - 1]) / step, 0.0, 1.0) if step > 0.0 else 0.0
    return np.asarray(np.clip(below + share * (above - below), below, above), np.float64)  # rounding stays inside
