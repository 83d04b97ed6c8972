"""Plans in whole levels: the budget is kept by snapping, settling and every move, whatever the sizes."""

import hypothesis
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tailcut.allocation import NM, Bits, Budget, Dense, LayerPlan, LayerScore, LayerScores
from tailcut.compress.allocators import Settings
from tailcut.compress.searches._grid import Grid, kind_of, make_grid, settle
from tailcut.compress.searches._ladder import Levels
from tailcut.compress.searches._moves import MOVES, mutate
from tailcut.errors import InputError

unhurried = hypothesis.settings(deadline=None, max_examples=80)
LADDERS = ("sparsity", "nm", "bits")
KINDS = ("attn.q", "attn.k", "mlp.up")


def scores_of(blocks: int, shapes: list[tuple[int, int]]) -> LayerScores:
    layers = (
        LayerScore(f"model.layers.{block}.{KINDS[kind]}", block, shape, {})
        for block in range(blocks)
        for kind, shape in enumerate(shapes)
    )
    return LayerScores("model", tuple(layers), 1)


@st.composite
def budgets(draw: st.DrawFn, kind: str) -> tuple[Budget, Settings]:
    """Any that the ladder can meet."""
    if kind == "bits":
        choices: tuple[Bits, ...] = draw(st.sampled_from([(8, 4, 3, 2), (8, 4), (4, 2), (3,)]))
        mean = draw(st.one_of(st.floats(min(choices), max(choices)), st.sampled_from(choices)))
        sparsity = draw(st.sampled_from([0.0, 0.5]))
        pattern = draw(st.sampled_from([None, NM(1, 2)])) if sparsity else None
        return Budget(sparsity, pattern=pattern, bits=mean, bit_choices=choices), Settings()
    if kind == "nm":
        group, dense = draw(st.sampled_from([4, 8])), draw(st.booleans())
        low = 0.0 if dense else 1 / group
        sparsity = draw(st.one_of(st.floats(low, 1 - 1 / group), st.just(0.5)))
        return Budget(sparsity), Settings(group=group, allow_dense=dense)
    sparsity = draw(st.one_of(st.floats(0.0, 0.85), st.sampled_from([0.0, 0.5, 0.6, 0.7])))
    return Budget(sparsity, draw(st.floats(max(sparsity + 0.1, 0.2), 1.0))), Settings()


@st.composite
def grids(draw: st.DrawFn, kinds: tuple[str, ...] = LADDERS) -> Grid:
    """1 to 6 blocks of up to three kinds of matrices of unequal sizes, any budget that the grid can meet."""
    kind = draw(st.sampled_from(kinds))
    inputs = st.integers(1, 5).map(lambda groups: 8 * groups) if kind != "sparsity" else st.integers(1, 40)
    shapes = draw(st.lists(st.tuples(st.integers(1, 40), inputs), min_size=1, max_size=3))
    budget, settings = draw(budgets(kind))
    step = draw(st.sampled_from([0.005, 0.02, 0.03, 0.1]))
    grid = make_grid(scores_of(draw(st.integers(1, 6)), shapes), budget, step, settings)
    assert grid.ladder.kind == kind
    return grid


def sparsity_of(grid: Grid, plans: dict[str, LayerPlan]) -> float:
    cut = np.array([plans[name].pattern.sparsity for name in grid.names])
    return float(cut @ grid.sizes / grid.sizes.sum())


def require_kept(grid: Grid, levels: Levels) -> None:
    """On the ladder, and beyond the goal by less than what one matrix could give back by one level."""
    assert levels.min() >= 0
    assert levels.max() <= grid.ladder.top
    assert 0 <= grid.excess(levels) < max(1, grid.coarsest)
    steps = np.diff(grid.ladder.gains, prepend=-(10**9))  # nothing is below level 0
    if grid.excess(levels) > 0:
        lowerable = [size * steps[level] for size, level in zip(grid.sizes, levels, strict=True) if level > 0]
        assert all(cost > grid.excess(levels) for cost in lowerable)


@unhurried
@given(grid=grids(), seed=st.integers(0, 2**32 - 1))
def test_any_plan_snaps_onto_the_budget(grid: Grid, seed: int) -> None:
    wanted = np.random.default_rng(seed).random(len(grid.names)) * grid.ladder.gains[-1]
    require_kept(grid, grid.snap(wanted))


@unhurried
@given(grid=grids(), seed=st.integers(0, 2**32 - 1), move=st.sampled_from(MOVES))
def test_moves_keep_the_budget_and_the_bounds(grid: Grid, seed: int, move: str) -> None:
    rng = np.random.default_rng(seed)
    levels = grid.even()
    for _ in range(5):
        before = levels.copy()
        changed = mutate(grid, levels, move, rng)
        assert np.array_equal(levels, before)  # the parent is left alone
        levels = changed
        require_kept(grid, levels)


@unhurried
@given(grid=grids(("sparsity",)), seed=st.integers(0, 2**32 - 1))
def test_the_final_plan_meets_the_budget_exactly(grid: Grid, seed: int) -> None:
    levels = mutate(grid, grid.even(), "matrix", np.random.default_rng(seed))
    plans, step = grid.plans(levels), grid.ladder.unit
    # as the allocators' contract: float64 rounding of a sum over at most 18 matrices
    assert sparsity_of(grid, plans) == pytest.approx(grid.budget.sparsity, abs=1e-12)
    assert all(0.0 <= plan.pattern.sparsity <= grid.budget.cap for plan in plans.values())
    # the shift only takes back the excess: weights moved in all are less than a level of the largest matrix, to rounding
    moved = [abs(plans[name].pattern.sparsity - level * step) for name, level in zip(grid.names, levels, strict=True)]
    assert np.array(moved) @ grid.sizes <= step * int(grid.sizes.max()) * (1.0 + 1e-9)


@unhurried
@given(grid=grids(("nm", "bits")), seed=st.integers(0, 2**32 - 1))
def test_whole_plans_cut_no_less_than_was_asked_for(grid: Grid, seed: int) -> None:
    """Counted from the plans themselves, not from levels."""
    plans = grid.plans(mutate(grid, grid.even(), "matrix", np.random.default_rng(seed)))
    asked, weights = grid.budget, int(grid.sizes.sum())
    if asked.bits is None:
        assert sparsity_of(grid, plans) >= asked.sparsity - 1e-9
        assert {plan.pattern.block for plan in plans.values() if isinstance(plan.pattern, NM)} <= {4, 8}
        return
    bits = sum((plans[name].bits or 0) * int(size) for name, size in zip(grid.names, grid.sizes, strict=True))
    assert bits <= asked.bits * weights * (1 + 1e-9)
    assert sparsity_of(grid, plans) == pytest.approx(asked.sparsity, abs=1e-12)
    assert {plan.bits for plan in plans.values()} <= set(asked.bit_choices)


def eight_three_one(sparsity: float = 0.7, step: float = 0.02) -> Grid:
    """Sizes in the proportions of SmolLM2's gate, q and k."""
    shapes = {"gate": (8, 6), "q": (3, 6), "k": (1, 6)}
    layers = [LayerScore(f"layers.{b}.{kind}", b, shape, {}) for b in range(4) for kind, shape in shapes.items()]
    return make_grid(LayerScores("model", tuple(layers), 1), Budget(sparsity), step)


def test_uniform_is_on_the_grid_where_its_sparsity_is() -> None:
    grid = eight_three_one()
    levels = grid.even()
    assert set(levels.tolist()) == {35}
    assert {plan.pattern.sparsity for plan in grid.plans(levels).values()} == {0.7}


def test_a_level_of_a_large_matrix_is_settled_by_small_ones() -> None:
    grid = eight_three_one()
    levels = grid.even()
    levels[0] += 1  # 48 weights too many a level: 16 of three q, or 8 levels of k
    small = [place for place, kind in enumerate(grid.kinds) if kind != "gate"]
    settled = settle(grid, levels, small)
    assert grid.excess(settled) == 0
    assert settled[0] == 36


def test_a_sparsity_between_the_last_step_and_the_cap_is_refused() -> None:
    with pytest.raises(InputError, match="smaller steps"):
        eight_three_one(sparsity=0.985, step=0.1)


def test_what_is_on_a_rung_stays_there_and_the_rest_is_shared_out() -> None:
    scores = scores_of(2, [(8, 16), (3, 16)])
    halves = make_grid(scores, Budget(0.5, pattern=NM(4, 8)), 0.02)
    assert {str(plan.pattern) for plan in halves.plans(halves.even()).values()} == {"4:8"}
    four = make_grid(scores, Budget(0.0, bits=4.0), 0.02)
    assert set(four.plans(four.even()).values()) == {LayerPlan(Dense(), 4)}
    between = make_grid(scores, Budget(0.0, bits=3.5), 0.02)
    assert {plan.bits for plan in between.plans(between.even()).values()} == {3, 4}


@pytest.mark.parametrize(
    ("budget", "settings", "said"),
    [
        (Budget(0.5), Settings(group=16), "24 inputs are not a multiple of 16"),
        (Budget(0.5, pattern=NM(4, 8)), Settings(group=4), "do not agree"),
        (Budget(0.6, pattern=NM(4, 8)), Settings(), "give one of them"),
        (Budget(0.05), Settings(group=8), "or --allow-dense for less"),
        (Budget(0.5, pattern=NM(8, 16), bits=4.0), Settings(), "24 inputs are not a multiple of 16"),
    ],
)
def test_matrices_that_do_not_fit_on_the_ladder_are_refused(budget: Budget, settings: Settings, said: str) -> None:
    with pytest.raises(InputError, match=said):
        make_grid(scores_of(2, [(8, 24)]), budget, 0.02, settings)


def test_kinds_are_what_follows_the_block() -> None:
    assert kind_of("model.layers.3.mlp.up_proj", 3) == "mlp.up_proj"
    assert kind_of("h.1.attn.c_attn", 1) == "attn.c_attn"
