"""Evolution on problems whose optimum is known, without a model."""

import numpy as np
import pytest

from tailcut.allocation import Budget, LayerScore, LayerScores
from tailcut.compress.searches._evolve import TOP, Evolved, Rules, Spent, evolve
from tailcut.compress.searches._grid import Grid, make_grid
from tailcut.compress.searches._ladder import Levels
from tailcut.compress.searches._moves import MOVES, SINGLE


def grid_of(blocks: int = 8, sparsity: float = 0.6) -> Grid:
    shapes = {"q": (6, 6), "k": (2, 6), "up": (16, 6)}
    layers = [LayerScore(f"layers.{b}.{kind}", b, shape, {}) for b in range(blocks) for kind, shape in shapes.items()]
    return make_grid(LayerScores("model", tuple(layers), 1), Budget(sparsity), 0.02)


class Problem:
    """sum of weight_i (s_i - target_i)^2 / 2: convex and separable. Counts what it is asked."""

    def __init__(self, grid: Grid, most: int, seed: int = 0) -> None:
        rng = np.random.default_rng(seed)
        self.grid, self.left = grid, most
        self.weights = rng.uniform(0.5, 2.0, len(grid.names)) * grid.sizes
        self.targets = rng.uniform(0.3, 0.9, len(grid.names))
        self.asked: list[tuple[bytes, int, int]] = []

    def cost(self, sparsities: np.ndarray) -> float:
        return float((self.weights * (sparsities - self.targets) ** 2).sum() / 2.0)

    def __call__(self, levels: Levels, fidelity: int, turn: int) -> float:
        if self.left == 0:
            raise Spent
        self.left -= 1
        self.asked.append((levels.tobytes(), fidelity, turn))
        # less text, more noise: a number that depends on the plan alone
        noise = np.random.default_rng([fidelity, turn, *levels.tolist()]).normal() * (0.5, 0.2, 0.0)[fidelity]
        return self.cost(levels * self.grid.ladder.unit) + noise

    def optimum(self) -> float:
        """Lagrange: weight_i (s_i - target_i) = -multiplier size_i, with the one multiplier that meets the budget."""
        sizes = self.grid.sizes
        gap = sizes @ self.targets - self.grid.budget.sparsity * sizes.sum()
        return self.cost(self.targets - gap / (sizes @ (sizes / self.weights)) * sizes / self.weights)


def run(problem: Problem, rules: Rules, seed: int = 3) -> Evolved:
    return evolve(problem.grid, problem.grid.even(), problem, np.random.default_rng(seed), rules)


@pytest.mark.parametrize("moves", [SINGLE, MOVES])
def test_finds_nearly_the_optimum(moves: tuple[str, ...]) -> None:
    problem = Problem(grid_of(), 6000)
    uniform = problem.cost(np.full(len(problem.grid.names), 0.6))
    found = run(problem, Rules(moves=moves))
    # steps of 0.02 leave an error a matrix of up to weight * 0.01^2 / 2, of which a mean of a third
    rounding = float(problem.weights.sum()) * 0.01**2 / 2.0
    assert problem.optimum() <= found.fitness + rounding
    assert found.fitness - problem.optimum() < 0.05 * (uniform - problem.optimum()) + rounding


def test_is_never_worse_than_its_start_however_little_it_may_measure() -> None:
    for most in range(1, 60):
        problem = Problem(grid_of(), most)
        uniform = problem.cost(np.full(len(problem.grid.names), 0.6))
        found = run(problem, Rules())
        assert found.fitness <= uniform + 1e-9  # uniform is on the grid
        assert problem.grid.excess(found.levels) >= 0


def test_nothing_measured_gives_the_start_back() -> None:
    problem = Problem(grid_of(), 0)
    found = run(problem, Rules())
    assert found.fitness == float("inf")
    assert set(found.levels.tolist()) == {30}


def test_the_same_seed_gives_the_same_search() -> None:
    first, second = Problem(grid_of(), 500), Problem(grid_of(), 500)
    assert np.array_equal(run(first, Rules()).levels, run(second, Rules()).levels)
    assert first.asked == second.asked
    third = Problem(grid_of(), 500)
    run(third, Rules(), seed=4)
    assert third.asked != first.asked


def test_only_survivors_see_more_text() -> None:
    problem = Problem(grid_of(), 1 + 16 + 4 + 2)
    found = run(problem, Rules(offspring=16, survivors=(4, 2)))
    fidelities = [fidelity for _, fidelity, _ in problem.asked]
    assert fidelities == [TOP] + [0] * 16 + [1] * 4 + [TOP] * 2
    assert found.generations == 2  # the second one was begun, and nothing was left
    plans = [plan for plan, _, _ in problem.asked]
    assert set(plans[17:21]) <= set(plans[1:17])
    assert set(plans[21:]) <= set(plans[17:21])


def test_where_no_move_is_possible_it_ends() -> None:
    problem = Problem(grid_of(sparsity=0.0), 100)
    found = run(problem, Rules())
    assert found.generations == 0
    assert found.levels.sum() == 0


def test_moves_that_win_are_counted() -> None:
    found = run(Problem(grid_of(), 2000), Rules())
    assert set(found.wins) == set(MOVES)
    assert sum(found.wins.values()) > 0
