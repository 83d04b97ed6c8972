"""Allocations in whole units: Hamilton's rounding, nm-mixed and sparse24 on random scores, and their edges."""

from dataclasses import replace
from itertools import combinations
from random import Random

import hypothesis
import numpy as np
import pytest
from hypothesis import HealthCheck, assume, given
from hypothesis import strategies as st

from tailcut import codec
from tailcut.allocation import NM, Allocation, Budget, Dense, LayerPlan, LayerScore, LayerScores
from tailcut.compress.allocators import Granularity, Settings, allocate, nm_mixed, sparse24
from tailcut.compress.allocators._steps import Shares, apportion
from tailcut.errors import InputError

GRANULARITIES: tuple[Granularity, ...] = ("block", "matrix", "mixed")
# a busy machine is no failure: no time limit an example
unhurried = hypothesis.settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.too_slow])
granularities = st.sampled_from(GRANULARITIES)
taus = st.one_of(st.none(), st.floats(0.0, 1.0))


@st.composite
def scores(draw: st.DrawFn, multiple: int = 8) -> LayerScores:
    """Up to 6 blocks of up to 4 matrices whose inputs are multiples of `multiple`."""
    value = st.one_of(st.floats(1.01, 30.0), st.sampled_from([2.0, 3.0]))
    layers = [
        LayerScore(
            f"model.layers.{block}.m{matrix}",
            block,
            (draw(st.integers(1, 40)), multiple * draw(st.integers(1, 8))),
            {"alpha_peak": draw(value)},
        )
        for block in range(draw(st.integers(1, 6)))
        for matrix in range(draw(st.integers(1, 4)))
    ]
    return LayerScores("fingerprint", tuple(layers), sum(layer.parameters for layer in layers))


def made(values: list[float], sizes: list[int] | None = None, inputs: int = 8) -> LayerScores:
    """One matrix a block, of `sizes` outputs."""
    layers = [
        LayerScore(f"b{b:02d}", b, (sizes[b] if sizes else 1, inputs), {"alpha_peak": value})
        for b, value in enumerate(values)
    ]
    return LayerScores("made", tuple(layers), sum(layer.parameters for layer in layers))


def shuffled(given: LayerScores, random: Random) -> LayerScores:
    layers = list(given.layers)
    random.shuffle(layers)
    return replace(given, layers=tuple(layers))


def unit_sizes(given: LayerScores, granularity: Granularity) -> dict[str, int]:
    """Parameters of the unit each matrix belongs to."""
    if granularity != "block":
        return {layer.name: layer.parameters for layer in given.layers}
    blocks = {layer.block: 0 for layer in given.layers}
    for layer in given.layers:
        blocks[layer.block] += layer.parameters
    return {layer.name: blocks[layer.block] for layer in given.layers}


def removed(allocation: Allocation, group: int) -> dict[str, int]:
    return {name: round(plan.pattern.sparsity * group) for name, plan in allocation.plans.items()}


# Hamilton


def test_equal_units_are_rounded_by_largest_remainder() -> None:
    shares = Shares(((0,), (1,), (2,), (3,)), np.ones(4), np.array([1.2, 2.5, 3.7, 4.6]))
    assert apportion(shares, range(8), 12.0, nearest=True).tolist() == [1, 2, 4, 5]


def test_equal_remainders_go_to_the_earlier_unit() -> None:
    shares = Shares(((0,), (1,), (2,)), np.ones(3), np.full(3, 4.0 + 1 / 3))
    assert apportion(shares, range(8), 13.0, nearest=True).tolist() == [5, 4, 4]


@pytest.mark.parametrize(("total", "nearest", "expected"), [(12.4, True, 12), (12.6, True, 13), (12.6, False, 12)])
def test_a_part_of_a_unit_is_rounded_or_left(total: float, nearest: bool, expected: int) -> None:
    shares = Shares(((0,), (1,), (2,)), np.ones(3), np.full(3, total / 3))
    assert apportion(shares, range(8), total, nearest=nearest).sum() == expected


@unhurried
@given(
    sizes=st.lists(st.integers(1, 1000), min_size=1, max_size=12),
    data=st.data(),
    levels=st.sampled_from([(2.0, 3.0, 4.0, 8.0), tuple(map(float, range(1, 8)))]),
)
def test_no_unit_is_left_over_and_none_moves_more_than_the_budget_asks(
    sizes: list[int], data: st.DataObject, levels: tuple[float, ...]
) -> None:
    target = st.floats(levels[0], levels[-1])
    targets = np.array([data.draw(target) for _ in sizes])
    weights = np.array(sizes, np.float64)
    total = float(weights @ targets)
    shares = Shares(tuple((i,) for i in range(len(sizes))), weights, targets)
    steps = np.array(levels)
    below, near = (apportion(shares, levels, total, nearest=nearest) for nearest in (False, True))
    left = total - float(weights @ steps[below])
    assert left >= -1e-6 * total
    ups = [w * (steps[i + 1] - steps[i]) for w, i in zip(weights, below, strict=True) if i + 1 < len(steps)]
    assert all(up > left - 1e-6 * total for up in ups)
    # half of the smallest unit that is left, if there is one
    assert abs(total - float(weights @ steps[near])) <= min([*(up / 2 for up in ups), left]) + 1e-6 * total
    # equal units and steps: everyone gets the level below the target or the one above
    if len(set(sizes)) == 1 and levels[0] == 1.0:
        floor = np.searchsorted(steps, targets + 1e-9, side="right") - 1
        assert np.all((near - floor >= 0) & (near - floor <= 1))


# nm-mixed


def test_nm_mixed_worked_example() -> None:
    # section 9's example of alpha's scheme, times 8: targets 3.646, 5.209, 6.772 removed of 8 and 5.6 N = 22.4 in all;
    # floors 3, 5 and 6 make 20, the heavier matrix's remainder .772 takes 2 more, and .4 is less than half a unit
    scores_ = made([2.0, 3.0, 4.0], [1, 1, 2])
    allocation = nm_mixed.allocate(scores_, Budget(0.7), Settings(tau=0.3))
    assert [plan.pattern for plan in allocation.plans.values()] == [NM(5, 8), NM(3, 8), NM(1, 8)]
    assert allocation.provenance["patterns"] == "1:8 x 1, 3:8 x 1, 5:8 x 1"
    assert allocation.provenance["two_four"] == "1 of 3 matrices obey 2:4"


@pytest.mark.parametrize("pattern", [NM(4, 8), NM(3, 8), NM(2, 8), NM(2, 4), NM(1, 4)])
@pytest.mark.parametrize("granularity", GRANULARITIES)
def test_a_mean_pattern_is_met_exactly_by_equal_matrices(pattern: NM, granularity: Granularity) -> None:
    values = [2.6, 2.9, 3.0, 3.1, 4.2, 3.6, 3.9, 2.7]  # 16 matrices, so that half a unit is below 1/16 of a weight
    layers = [
        LayerScore(f"b{b}.m{m}", b, (4, 16), {"alpha_peak": value + 0.1 * m})
        for b, value in enumerate(values)
        for m in range(2)
    ]
    given_ = LayerScores("made", tuple(layers), 16 * 64)
    budget = Budget(pattern.sparsity, 0.99, pattern)
    allocation = nm_mixed.allocate(given_, budget, Settings(tau=0.3, granularity=granularity))
    assert allocation.sparsity({layer.name: 1 for layer in layers}) == pytest.approx(pattern.sparsity, abs=1e-15)
    blocks = {plan.pattern.block for plan in allocation.plans.values() if isinstance(plan.pattern, NM)}
    assert blocks == {pattern.block}
    kept = [plan.pattern.keep for plan in allocation.plans.values() if isinstance(plan.pattern, NM)]
    assert pattern.block == 4 or len(set(kept)) > 1  # it is a mixture


@unhurried
@given(
    given_=scores(),
    sparsity=st.floats(0.13, 0.87),
    granularity=granularities,
    tau=taus,
    allow_dense=st.booleans(),
    group=st.sampled_from([4, 8]),
    random=st.randoms(),
)
def test_nm_mixed_keeps_its_bounds_and_its_budget(
    given_: LayerScores,
    sparsity: float,
    granularity: Granularity,
    tau: float | None,
    allow_dense: bool,
    group: int,
    random: Random,
) -> None:
    assume(group == 8 or 0.25 <= sparsity <= 0.75)
    settings = Settings(tau=tau, granularity=granularity, group=group, allow_dense=allow_dense)
    allocation = allocate("nm-mixed", given_, Budget(sparsity), settings)
    assert list(allocation.plans) == [layer.name for layer in given_.layers]
    least = 0 if allow_dense else 1
    taken = removed(allocation, group)
    assert all(least <= count <= group - 1 for count in taken.values())
    assert all(isinstance(plan.pattern, Dense) == (taken[name] == 0) for name, plan in allocation.plans.items())
    sizes = unit_sizes(given_, granularity)
    smallest = min((size for name, size in sizes.items() if taken[name] < group - 1), default=0)
    parameters = {layer.name: layer.parameters for layer in given_.layers}
    total = sum(parameters.values())
    # half a unit, or a whole one below where the last one taken left none that small
    missing = sparsity * group * total - sum(taken[name] * parameters[name] for name in parameters)
    assert -max(sizes.values()) / 2 - 1e-6 * total <= missing <= (smallest / 2 if smallest else total) + 1e-6 * total
    again = allocate("nm-mixed", shuffled(given_, random), Budget(sparsity), settings)
    assert again.plans == allocation.plans
    assert again.provenance == allocation.provenance
    assert codec.from_json(Allocation, codec.to_json(allocation)) == allocation


@unhurried
@given(given_=scores(), sparsity=st.floats(0.2, 0.8), tau=st.floats(0.0, 1.0))
def test_a_lighter_tail_never_keeps_more(given_: LayerScores, sparsity: float, tau: float) -> None:
    same = replace(given_, layers=tuple(replace(layer, shape=(4, 8)) for layer in given_.layers))
    taken = removed(nm_mixed.allocate(same, Budget(sparsity), Settings(tau=tau, granularity="matrix")), 8)
    values = {layer.name: layer.values["alpha_peak"] for layer in same.layers}
    for a, b in combinations(values, 2):
        if min(values[a], 12.0) > min(values[b], 12.0) + 1e-6:  # LARGEST clamps alpha_peak
            assert taken[a] >= taken[b]


def test_equal_scores_give_one_pattern() -> None:
    allocation = nm_mixed.allocate(made([3.0] * 5), Budget(0.5), Settings())
    assert set(allocation.plans.values()) == {LayerPlan(NM(4, 8))}


def test_dense_only_where_it_is_allowed() -> None:
    given_ = made([2.0, 3.0, 4.0])
    allocation = nm_mixed.allocate(given_, Budget(1 / 8), Settings(tau=1.0, allow_dense=True))
    assert [str(plan.pattern) for plan in allocation.plans.values()] == ["dense", "7:8", "6:8"]
    assert nm_mixed.allocate(given_, Budget(1 / 8), Settings(tau=1.0)).plans["b00"].pattern == NM(7, 8)


@pytest.mark.parametrize(
    ("budget", "settings", "words"),
    [
        (Budget(0.05), Settings(), r"0\.05 cannot be made of N:8 patterns between 0\.125 and 0\.875.*--allow-dense"),
        (Budget(0.8), Settings(group=4), r"0\.8 cannot be made of N:4 patterns between 0\.25 and 0\.75"),
        (Budget(0.5, 0.55), Settings(group=3), r"b00: 8 inputs are not a multiple of 3"),
        (Budget(0.6, 0.61), Settings(), r"between 0\.125 and 0\.5 \(cap 0\.61\)"),
        (Budget(0.7, pattern=NM(4, 8)), Settings(), r"4:8 has sparsity 0\.5, the budget says 0\.7.*--group 8"),
        (Budget(0.5, pattern=NM(4, 8)), Settings(group=4), r"4:8 and a group of 4 do not agree"),
        (Budget(0.5), Settings(metric="alpha_mid"), r"b00: no value of alpha_mid"),
    ],
)
def test_nm_mixed_refuses_in_a_sentence(budget: Budget, settings: Settings, words: str) -> None:
    with pytest.raises(InputError, match=words):
        nm_mixed.allocate(made([2.0, 3.0]), budget, settings)


def test_inputs_that_are_no_whole_groups_are_named() -> None:
    with pytest.raises(InputError, match=r"b00: 12 inputs are not a multiple of 8.*--group 4, or --allocator sparse24"):
        nm_mixed.allocate(made([2.0], inputs=12), Budget(0.5), Settings())


# which patterns hardware takes


def test_patterns_that_are_two_of_four() -> None:
    assert [str(p) for p in (NM(n, 8) for n in range(1, 8)) if p.implies(NM(2, 4))] == ["1:8", "2:8"]
    assert NM(1, 4).implies(NM(2, 4))
    assert NM(2, 4).implies(NM(4, 8))
    assert not NM(4, 8).implies(NM(2, 4))


@pytest.mark.parametrize("pattern", [NM(2, 8), NM(1, 4), NM(4, 8), NM(3, 8), NM(1, 2), NM(1, 3), NM(2, 5)])
def test_implies_holds_on_random_rows(pattern: NM) -> None:
    rng = np.random.default_rng(0)
    alive = np.zeros((4000, 120 // pattern.block, pattern.block), bool)
    np.put_along_axis(alive, rng.random(alive.shape).argsort(-1)[..., : pattern.keep], True, -1)
    fullest = alive.reshape(len(alive), -1)[:, :120].reshape(-1, 4).sum(1).max()
    assert (fullest <= 2) == pattern.implies(NM(2, 4))


# sparse24


def cut_of(allocation: Allocation) -> set[str]:
    return {name for name, plan in allocation.plans.items() if plan.pattern.sparsity}


@unhurried
@given(given_=scores(multiple=2), share=st.floats(0.0, 1.0), granularity=granularities, random=st.randoms())
def test_sparse24_fills_its_budget_and_never_passes_it(
    given_: LayerScores, share: float, granularity: Granularity, random: Random
) -> None:
    able = {layer.name: layer.parameters for layer in given_.layers if layer.shape[1] % 4 == 0}
    total = sum(layer.parameters for layer in given_.layers)
    budget = Budget(share * 0.5 * sum(able.values()) / total)
    settings = Settings(granularity=granularity)
    allocation = allocate("sparse24", given_, budget, settings)
    assert {plan.pattern for plan in allocation.plans.values()} <= {NM(2, 4), Dense()}
    cut = cut_of(allocation)
    assert cut <= able.keys()
    left = 2 * budget.sparsity * total - sum(able[name] for name in cut)
    assert left >= -1e-6 * total
    blocks = {layer.name: layer.block for layer in given_.layers}
    units = [{n for n in able if blocks[n] == b} for b in set(blocks.values())] if granularity == "block" else []
    for unit in units or [{name} for name in able]:
        assert not unit or unit <= cut or not unit & cut
        assert unit <= cut or sum(able[name] for name in unit) > left - 1e-6 * total
    again = allocate("sparse24", shuffled(given_, random), budget, settings)
    assert (again.plans, again.provenance) == (allocation.plans, allocation.provenance)
    assert codec.from_json(Allocation, codec.to_json(allocation)) == allocation


def test_the_lightest_tails_become_two_of_four() -> None:
    allocation = sparse24.allocate(made([2.0, 5.0, 3.0, 4.0]), Budget(0.25), Settings())
    assert cut_of(allocation) == {"b01", "b03"}
    assert allocation.provenance["patterns"] == "2:4 in 2 of 4 matrices"


@pytest.mark.parametrize("seed", range(20))
def test_the_filling_is_the_best_of_all_subsets(seed: int) -> None:
    rng = np.random.default_rng(seed)
    sizes = [int(size) for size in rng.integers(1, 60, 9)]
    capacity = int(rng.integers(0, sum(sizes) + 1))
    places = sparse24.choose(sizes, capacity)
    prefix = next((n for n in range(len(sizes)) if sum(sizes[: n + 1]) > capacity), len(sizes))
    subsets = (
        (sum(sizes[p] for p in chosen) + sum(sizes[:prefix]), chosen)
        for count in range(len(sizes) - prefix + 1)
        for chosen in combinations(range(prefix, len(sizes)), count)
    )
    best = max(total for total, _ in subsets if total <= capacity)
    assert places[:prefix] == list(range(prefix))
    assert sum(sizes[place] for place in places) == best


def test_matrices_without_whole_groups_stay_dense() -> None:
    layers = [LayerScore(f"m{i}", i, (4, inputs), {"alpha_peak": 9.0 - i}) for i, inputs in enumerate((6, 8, 8))]
    given_ = LayerScores("made", tuple(layers), 88)
    allocation = sparse24.allocate(given_, Budget(0.19), Settings())
    assert cut_of(allocation) == {"m1"}
    assert "1 stay dense because their inputs are not a multiple of 4" in allocation.provenance["patterns"]
    with pytest.raises(InputError, match=r"0\.5 is more than 2:4 can give here \(0\.363636 .* 2 of 3 matrices"):
        sparse24.allocate(given_, Budget(0.5), Settings())


def test_sparse24_of_another_pattern_and_of_all() -> None:
    given_ = made([2.0, 3.0])
    budget = Budget(0.5, pattern=NM(4, 8))
    assert set(sparse24.allocate(given_, budget, Settings()).plans.values()) == {LayerPlan(NM(4, 8))}
    assert cut_of(sparse24.allocate(given_, Budget(0.0), Settings())) == set()


def test_sparse24_under_a_cap_below_a_half() -> None:
    with pytest.raises(InputError, match=r"2:4 removes 0\.5 of a matrix, the cap allows 0\.4"):
        sparse24.allocate(made([2.0]), Budget(0.3, 0.4), Settings())
