"""Plans in whole levels: the budget is kept by snapping, settling and every move, whatever the sizes."""

import hypothesis
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tailcut.allocation import Budget, LayerScore, LayerScores
from tailcut.compress.searches._grid import Grid, kind_of, make_grid, settle
from tailcut.compress.searches._moves import MOVES, mutate
from tailcut.errors import InputError

unhurried = hypothesis.settings(deadline=None, max_examples=80)
KINDS = ("attn.q", "attn.k", "mlp.up")


@st.composite
def grids(draw: st.DrawFn) -> Grid:
    """1 to 6 blocks of up to three kinds of matrices of unequal sizes, any budget that the grid can meet."""
    shapes = draw(st.lists(st.tuples(st.integers(1, 40), st.integers(1, 40)), min_size=1, max_size=3))
    layers = tuple(
        LayerScore(f"model.layers.{block}.{KINDS[kind]}", block, shape, {})
        for block in range(draw(st.integers(1, 6)))
        for kind, shape in enumerate(shapes)
    )
    step = draw(st.sampled_from([0.005, 0.02, 0.03, 0.1]))
    sparsity = draw(st.one_of(st.floats(0.0, 0.85), st.sampled_from([0.0, 0.5, 0.6, 0.7])))
    budget = Budget(sparsity, draw(st.floats(max(sparsity + 0.1, 0.2), 1.0)))
    return make_grid(LayerScores("model", layers, 1), budget, step)


def sparsity_of(grid: Grid, plan: dict[str, float]) -> float:
    cut = np.array([plan[name] for name in grid.names])
    return float(cut @ grid.sizes / grid.sizes.sum())


@unhurried
@given(grid=grids(), seed=st.integers(0, 2**32 - 1))
def test_any_plan_snaps_onto_the_budget(grid: Grid, seed: int) -> None:
    wanted = np.random.default_rng(seed).random(len(grid.names)) * grid.budget.cap
    levels = grid.snap(dict(zip(grid.names, wanted, strict=True)))
    assert levels.min() >= 0
    assert levels.max() <= grid.most
    assert 0 <= grid.excess(levels) < max(1, int(grid.sizes.max()))
    if levels.min() > 0:  # no bound is in the way
        assert grid.excess(levels) < int(grid.sizes.min())


@unhurried
@given(grid=grids(), seed=st.integers(0, 2**32 - 1), move=st.sampled_from(MOVES))
def test_moves_keep_the_budget_and_the_bounds(grid: Grid, seed: int, move: str) -> None:
    rng = np.random.default_rng(seed)
    levels = grid.snap(dict.fromkeys(grid.names, grid.budget.sparsity))
    for _ in range(5):
        before = levels.copy()
        changed = mutate(grid, levels, move, rng)
        assert np.array_equal(levels, before)  # the parent is left alone
        levels = changed
        assert levels.min() >= 0
        assert levels.max() <= grid.most
        assert 0 <= grid.excess(levels) < max(1, int(grid.sizes.max()))


@unhurried
@given(grid=grids(), seed=st.integers(0, 2**32 - 1))
def test_the_final_plan_meets_the_budget_exactly(grid: Grid, seed: int) -> None:
    levels = grid.snap(dict.fromkeys(grid.names, grid.budget.sparsity))
    levels = mutate(grid, levels, "matrix", np.random.default_rng(seed))
    plan = grid.sparsities(levels)
    # as the allocators' contract: float64 rounding of a sum over at most 18 matrices
    assert sparsity_of(grid, plan) == pytest.approx(grid.budget.sparsity, abs=1e-12)
    assert all(0.0 <= value <= grid.budget.cap for value in plan.values())
    # the shift only takes back the excess: weights moved in all are less than a level of the largest matrix, to rounding
    moved = [abs(plan[name] - level * grid.step) for name, level in zip(grid.names, levels, strict=True)]
    assert np.array(moved) @ grid.sizes <= grid.step * int(grid.sizes.max()) * (1.0 + 1e-9)


def eight_three_one(sparsity: float = 0.7, step: float = 0.02) -> Grid:
    """Sizes in the proportions of SmolLM2's gate, q and k."""
    shapes = {"gate": (8, 6), "q": (3, 6), "k": (1, 6)}
    layers = [LayerScore(f"layers.{b}.{kind}", b, shape, {}) for b in range(4) for kind, shape in shapes.items()]
    return make_grid(LayerScores("model", tuple(layers), 1), Budget(sparsity), step)


def test_uniform_is_on_the_grid_where_its_sparsity_is() -> None:
    grid = eight_three_one()
    levels = grid.snap(dict.fromkeys(grid.names, 0.7))
    assert set(levels.tolist()) == {35}
    assert set(grid.sparsities(levels).values()) == {0.7}


def test_a_level_of_a_large_matrix_is_settled_by_small_ones() -> None:
    grid = eight_three_one()
    levels = grid.snap(dict.fromkeys(grid.names, 0.7))
    levels[0] += 1  # 48 weights too many a level: 16 of three q, or 8 levels of k
    small = [place for place, kind in enumerate(grid.kinds) if kind != "gate"]
    settled = settle(grid, levels, small)
    assert grid.excess(settled) == 0
    assert settled[0] == 36


def test_a_sparsity_between_the_last_step_and_the_cap_is_refused() -> None:
    with pytest.raises(InputError, match="smaller steps"):
        eight_three_one(sparsity=0.985, step=0.1)


def test_kinds_are_what_follows_the_block() -> None:
    assert kind_of("model.layers.3.mlp.up_proj", 3) == "mlp.up_proj"
    assert kind_of("h.1.attn.c_attn", 1) == "attn.c_attn"
