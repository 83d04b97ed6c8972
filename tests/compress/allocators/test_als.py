"""ALS: importances by hand, the linear program against every corner, the quadratic one against its conditions."""

from itertools import product
from typing import get_args

import numpy as np
import pytest

from tailcut.allocation import Budget, LayerScore, LayerScores
from tailcut.compress.allocators import Granularity, Settings, Solver, als
from tailcut.compress.allocators._als import REGULARISER, importances, on_grid, solve_lp, solve_qp
from tailcut.compress.allocators._budget import Vector
from tailcut.errors import InputError


def rows(matrix: Vector) -> tuple[tuple[float, ...], ...]:
    return tuple(tuple(float(number) for number in row) for row in matrix)


def redundancy(size: int, seed: int) -> Vector:
    upper = np.triu(np.random.default_rng(seed).random((size, size)), 1)
    return np.asarray(upper + upper.T + np.eye(size))


def made(blocks: int, shapes: list[tuple[int, int]], seed: int = 0) -> LayerScores:
    """Blocks of matrices of these shapes with random redundancies, as `tailcut measure --metric als` stores them."""
    layers = [LayerScore(f"b{b:02}.m{m}", b, shape, {}) for b in range(blocks) for m, shape in enumerate(shapes)]
    places = [layer.block for layer in layers]
    between = redundancy(blocks, seed)[np.ix_(places, places)]
    pairs = {"als.block": rows(between), "als": rows(redundancy(len(layers), seed + 1))}
    return LayerScores("made", tuple(layers), 1, pairs=pairs)


def sparsities(scores: LayerScores, budget: Budget, settings: Settings | None = None) -> list[float]:
    plans = als.allocate(scores, budget, settings or Settings()).plans
    return [plan.pattern.sparsity for plan in plans.values()]


def test_importances_by_hand() -> None:
    # rho = [.5, .7, .4], mu = [.5, 17/30, 7/15]: exp(-1), exp(-21/17), exp(-6/7), in proportion to the last
    r = np.array([[1.0, 0.4, 0.1], [0.4, 1.0, 0.3], [0.1, 0.3, 1.0]])
    omega = np.exp(6 / 7 - np.array([1.0, 21 / 17, 6 / 7]))
    assert importances(r, trailing=False) == pytest.approx(omega, abs=1e-15)
    averaged = [omega.mean(), omega[1:].mean(), omega[2]]
    assert importances(r, trailing=True) == pytest.approx(averaged, abs=1e-15)


def test_what_resembles_nothing_matters_most_and_224_matrices_do_not_underflow() -> None:
    r = np.full((224, 224), 0.9)
    r[0, 1:] = r[1:, 0] = 0.1
    np.fill_diagonal(r, 1.0)
    got = importances(r, trailing=False)
    assert got[0] == 1.0
    assert np.all((got[1:] > 0.0) & (got[1:] < 1.0))


@pytest.mark.parametrize("seed", range(20))
def test_lp_is_no_worse_than_any_corner(seed: int) -> None:
    """A linear objective is largest at a corner: all on bounds but one, whose place the budget fixes."""
    rng = np.random.default_rng(seed)
    size = 5
    values, parameters = rng.random(size), rng.integers(1, 20, size).astype(float)
    low, sparsity, high = np.sort(rng.random(3))
    got = solve_lp(values, parameters, sparsity, low, high)
    assert np.average(got, weights=parameters) == pytest.approx(sparsity, abs=1e-14)
    best = -np.inf
    for free, ends in product(range(size), product((low, high), repeat=size)):
        corner = np.array(ends)
        corner[free] += (sparsity * parameters.sum() - corner @ parameters) / parameters[free]
        if low - 1e-12 <= corner[free] <= high + 1e-12:
            best = max(best, float(values @ (1.0 - corner)))
    assert values @ (1.0 - got) == pytest.approx(best, abs=1e-12)


def test_lp_puts_16_of_32_blocks_on_each_published_bound() -> None:
    got = sparsities(made(32, [(8, 8)]), Budget(0.5), Settings(granularity="block"))
    assert sorted(got) == pytest.approx([0.3] * 16 + [0.7] * 16, abs=1e-12)


@pytest.mark.parametrize("sparsity", [0.3, 0.7])
@pytest.mark.parametrize("granularity", get_args(Granularity))
def test_lp_at_a_published_bound_is_uniform(sparsity: float, granularity: Granularity) -> None:
    got = sparsities(made(6, [(8, 8), (4, 8)]), Budget(sparsity), Settings(granularity=granularity))
    assert got == pytest.approx([sparsity] * 12, abs=1e-12)


def test_the_more_redundant_half_loses_more() -> None:
    r = redundancy(8, 3)
    values = importances(r, trailing=False)
    got = solve_lp(values, np.ones(8), 0.5, 0.3, 0.7)
    assert got[values >= np.sort(values)[4]] == pytest.approx([0.3] * 4)
    assert got[values < np.sort(values)[4]] == pytest.approx([0.7] * 4)


def test_lp_shares_evenly_among_equals() -> None:
    got = solve_lp(np.array([2.0, 1.0, 1.0]), np.ones(3), 0.5, 0.2, 0.8)
    assert got == pytest.approx([0.2, 0.65, 0.65])


@pytest.mark.parametrize("seed", range(20))
def test_qp_meets_its_optimality_conditions(seed: int) -> None:
    """One multiplier m: c - 2 g (d - D) equals m inside the bounds, is below it at the most sparse, above at the least."""
    rng = np.random.default_rng(seed)
    values, parameters = rng.random(9) * 5, rng.integers(1, 20, 9).astype(float)
    low, sparsity, high = np.sort(rng.random(3))
    got = solve_qp(values, parameters, sparsity, low, high)
    assert np.average(got, weights=parameters) == pytest.approx(sparsity, abs=1e-14)
    stretched = (values - values.min()) / np.ptp(values)
    gain = stretched - 2 * REGULARISER * (sparsity - got)  # d - D = S - s
    inside = (got > low + 1e-9) & (got < high - 1e-9)
    assert inside.any()
    multiplier = gain[inside].mean()
    assert gain[inside] == pytest.approx([multiplier] * inside.sum(), abs=1e-9)
    assert np.all(gain[got <= low + 1e-9] >= multiplier - 1e-9)
    assert np.all(gain[got >= high - 1e-9] <= multiplier + 1e-9)


@pytest.mark.parametrize("sparsity", [0.3, 0.7, 0.85])
def test_qp_spreads_blocks_by_a_sixteenth_at_any_budget(sparsity: float) -> None:
    got = sparsities(made(12, [(8, 8)]), Budget(sparsity), Settings(solver="qp", granularity="block"))
    assert np.ptp(got) == pytest.approx(1 / 16)
    assert np.mean(got) == pytest.approx(sparsity, abs=1e-15)


def test_qp_does_not_depend_on_the_scale_of_importances() -> None:
    values = np.array([0.3, 0.1, 0.2])
    one, other = (solve_qp(scale * values, np.ones(3), 0.6, 0.0, 1.0) for scale in (1.0, 1e-9))
    assert one == pytest.approx(other, abs=1e-12)


@pytest.mark.parametrize("solver", get_args(Solver))
def test_second_level_keeps_every_block_s_budget(solver: Solver) -> None:
    shapes = [(8, 8), (2, 8), (2, 8), (24, 8)]
    scores = made(7, shapes)

    def table(granularity: Granularity) -> Vector:
        settings = Settings(solver=solver, granularity=granularity, bounds=(0.2, 0.9))
        return np.reshape(sparsities(scores, Budget(0.6), settings), (7, 4))

    block, mixed = table("block"), table("mixed")
    sizes = [a * b for a, b in shapes]
    assert np.average(mixed, axis=1, weights=sizes) == pytest.approx(block[:, 0], abs=1e-12)
    assert np.ptp(mixed, axis=1).max() > 0.0


@pytest.mark.parametrize("seed", range(20))
def test_grid_keeps_the_budget_and_leaves_few_off_it(seed: int) -> None:
    rng = np.random.default_rng(seed)
    wanted = 0.3 + 0.4 * rng.random(20)
    parameters = rng.integers(1, 50, 20).astype(float)
    got = on_grid(wanted, parameters, 0.005, 0.3, 0.7)
    assert got @ parameters == pytest.approx(wanted @ parameters, abs=1e-9)
    off = np.abs(got / 0.005 - np.round(got / 0.005)) > 1e-6
    assert off.sum() <= 1
    assert np.abs(got - wanted)[~off].max() <= 0.005 + 1e-12
    assert got.min() >= 0.3
    assert got.max() <= 0.7


@pytest.mark.parametrize(
    ("sparsity", "bounds"),
    [(0.2, (0.1, 0.3)), (0.3, (0.3, 0.7)), (0.5, (0.3, 0.7)), (0.7, (0.3, 0.7)), (0.8, (0.7, 0.9))],
)
def test_default_bounds(sparsity: float, bounds: tuple[float, float]) -> None:
    assert als.default_bounds(sparsity) == pytest.approx(bounds)


def test_bounds_that_exclude_the_budget_are_refused() -> None:
    with pytest.raises(InputError, match=r"0\.8 cannot be met when every matrix is to lose 0\.3 to 0\.7"):
        sparsities(made(2, [(4, 4)]), Budget(0.8), Settings(bounds=(0.3, 0.7)))


def test_absent_redundancies_say_what_to_measure() -> None:
    scores = LayerScores("x", (LayerScore("m", 0, (4, 4), {}),), 16)
    with pytest.raises(InputError, match=r"no pairs als\.block \(none\); run tailcut measure --metric als"):
        sparsities(scores, Budget(0.5))
