"""Meeting a weighted mean exactly between bounds: against bisection, and where every unit is on a bound."""

import numpy as np
import pytest

from tailcut.compress.allocators._budget import Vector
from tailcut.compress.allocators._fill import fill


def bisected(base: Vector, slope: Vector, parameters: Vector, mean: float, low: float, high: float) -> Vector:
    """The same common number m, found by halving."""
    least, most = -1e4, 1e4
    for _ in range(200):
        middle = (least + most) / 2
        values = np.clip(base + middle * slope, low, high)
        least, most = (least, middle) if np.average(values, weights=parameters) > mean else (middle, most)
    return np.clip(base + least * slope, low, high)


@pytest.mark.parametrize("seed", range(30))
def test_fill_equals_bisection(seed: int) -> None:
    rng = np.random.default_rng(seed)
    size = int(rng.integers(1, 12))
    base, slope = rng.normal(size=size), 0.01 + rng.random(size)
    parameters = rng.integers(1, 100, size).astype(float)
    low, mean, high = np.sort(rng.random(3))
    got = fill(base, slope, parameters, mean, low, high)
    # slopes of 0.01 or more: 200 halvings of 2e4 leave m exact to rounding
    np.testing.assert_allclose(got, bisected(base, slope, parameters, mean, low, high), atol=1e-9)
    assert np.average(got, weights=parameters) == pytest.approx(mean, abs=1e-14)
    assert low <= got.min()
    assert got.max() <= high


@pytest.mark.parametrize("mean", [0.2, 0.8])
def test_a_mean_on_a_bound_puts_every_unit_there(mean: float) -> None:
    got = fill(np.array([0.0, 5.0, -3.0]), np.ones(3), np.array([1.0, 2.0, 3.0]), mean, 0.2, 0.8)
    assert got == pytest.approx([mean] * 3, abs=1e-15)


def test_bounds_that_meet_leave_one_answer() -> None:
    assert fill(np.array([0.0, 5.0]), np.ones(2), np.ones(2), 0.4, 0.4, 0.4).tolist() == [0.4, 0.4]
