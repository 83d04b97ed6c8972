"""The latency allocator and its knapsack against brute force, alpha's scheme where it must agree, and its edges."""

from dataclasses import replace
from itertools import product
from random import Random

import hypothesis
import numpy as np
import pytest
from hypothesis import HealthCheck, assume, given
from hypothesis import strategies as st

from tailcut import codec
from tailcut.allocation import NM, Allocation, Budget, Dense, LayerScore, LayerScores, Pattern, Unstructured
from tailcut.compress.allocators import Granularity, Settings, allocate, alpha, latency
from tailcut.compress.allocators._damage import equal_sparsity
from tailcut.compress.allocators._knapsack import choose
from tailcut.cost import Cost, CostTable
from tailcut.errors import InputError
from tailcut.results import Machine

MACHINE = Machine("cpu", (), 2, 2, 1, 1, None, "Linux", {}, None, "f00d")
LEVELS = (0.5, 0.6, 0.7, 0.8, 0.9)
# a busy machine is no failure: no time limit an example
unhurried = hypothesis.settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.too_slow])


def table(costs: dict[tuple[int, int], dict[Pattern, float]], fixed: float = 0.0) -> CostTable:
    entries = [Cost(shape, p, "float32", ms) for shape, of in costs.items() for p, ms in of.items()]
    return CostTable("tailcut", MACHINE, 1, tuple(entries), {"float32": fixed} if fixed else {})


def proportional(shapes: set[tuple[int, int]], fixed: float = 0.0) -> CostTable:
    """Milliseconds in proportion to the weights left."""
    patterns: list[Pattern] = [Dense(), *(Unstructured(s) for s in (0.01, 0.3, 0.6, 0.99))]
    return table({shape: {p: shape[0] * shape[1] * (1 - p.sparsity) for p in patterns} for shape in shapes}, fixed)


def made(values: list[float], shapes: list[tuple[int, int]] | None = None) -> LayerScores:
    layers = [
        LayerScore(f"b{b:02d}", b, shapes[b] if shapes else (8, 8), {"alpha_peak": value})
        for b, value in enumerate(values)
    ]
    return LayerScores("made", tuple(layers), sum(layer.parameters for layer in layers))


def planned(scores: LayerScores, speedup: float, costs: CostTable, **more: object) -> Allocation:
    settings = replace(Settings(cost=costs), **more)  # type: ignore[arg-type]
    return allocate("latency", scores, Budget(0.0, speedup=speedup), settings)


def spent(scores: LayerScores, allocation: Allocation, costs: CostTable) -> float:
    return sum(costs.curve(x.shape, "float32").ms(allocation.plans[x.name].pattern) for x in scores.layers)


# the knapsack


@unhurried
@given(data=st.data(), items=st.integers(1, 5))
def test_within_one_step_of_the_best_choice(data: st.DataObject, items: int) -> None:
    number = st.integers(1, 50).map(float)
    options = [data.draw(st.lists(st.tuples(number, number), min_size=1, max_size=4)) for _ in range(items)]
    costs = [np.array([cost for cost, _ in item]) for item in options]
    damages = [np.array([damage for _, damage in item]) for item in options]
    limit = data.draw(st.floats(1.0, 50.0 * items))
    found = choose(costs, damages, limit)
    totals = [(sum(c for c, _ in combination), sum(d for _, d in combination)) for combination in product(*options)]
    possible = [damage for cost, damage in totals if cost <= limit * (1 + 1e-9)]
    if found is None:
        assert not possible
        return
    best = min(possible)
    assert found.cost <= limit * (1 + 1e-9)
    assert found.bound <= best + 1e-6  # float sums of up to 250
    assert best - 1e-9 <= found.damage <= found.bound + found.last_step + 1e-6
    assert found.damage == pytest.approx(sum(d[i] for d, i in zip(damages, found.options, strict=True)))


def test_nothing_is_done_where_nothing_is_needed() -> None:
    found = choose([np.array([3.0, 1.0])], [np.array([0.0, 5.0])], 3.0)
    assert found is not None
    assert (found.options, found.damage, found.bound) == ((0,), 0.0, 0.0)


def test_the_last_saving_is_the_cheapest_that_suffices() -> None:
    # by ratio the first item's step (saves 10 for 10) comes before the second's (saves 1 for 2), but 1 is enough
    found = choose([np.array([10.0, 0.0]), np.array([2.0, 1.0])], [np.array([0.0, 10.0]), np.array([0.0, 2.0])], 11.0)
    assert found is not None
    assert found.options == (0, 1)
    assert found.bound == pytest.approx(1.0)


# damage


@pytest.mark.parametrize("pattern", [NM(2, 4), NM(4, 8), NM(1, 4), NM(6, 8)])
def test_equal_sparsity_loses_as_much_of_random_weights(pattern: NM) -> None:
    rng = np.random.default_rng(0)
    weights = rng.standard_normal(1 << 20)
    groups = np.sort(np.abs(weights).reshape(-1, pattern.block))
    lost = float((groups[:, : pattern.block - pattern.keep] ** 2).sum())
    alone = np.sort(weights**2)[: int(equal_sparsity(pattern) * weights.size)].sum()
    assert alone == pytest.approx(lost, rel=0.01)  # sampling error of a million weights


def test_groups_hurt_more_and_large_ones_less() -> None:
    by_block = [equal_sparsity(NM(n // 2, n)) for n in (2, 4, 8, 16, 32)]
    assert by_block == sorted(by_block, reverse=True)
    assert by_block[-1] > 0.5
    assert equal_sparsity(NM(8, 8)) == equal_sparsity(Dense()) == 0.0
    assert equal_sparsity(Unstructured(0.3)) == 0.3


# the allocator


@pytest.mark.parametrize("speedup", [1.5, 2.0, 3.0])
def test_where_time_is_parameters_the_plan_is_alpha_s(speedup: float) -> None:
    scores = made([2.0, 2.4, 3.0, 4.1, 5.0], [(8, 16), (24, 8), (8, 8), (16, 16), (8, 40)])
    costs = proportional({layer.shape for layer in scores.layers})
    got = planned(scores, speedup, costs, tau=0.3, granularity="matrix")
    want = alpha.allocate(scores, Budget(1 - 1 / speedup), Settings(tau=0.3, granularity="matrix"))
    for name, plan in got.plans.items():
        # sparsities are multiples of 0.01, and the last saving may be spread by one level over several matrices
        assert plan.pattern.sparsity == pytest.approx(want.plans[name].pattern.sparsity, abs=0.03)


shapes = st.sampled_from([(8, 8), (16, 8), (8, 32)])


@st.composite
def random_tables(draw: st.DrawFn) -> CostTable:
    number = st.floats(0.01, 1.0)
    costs: dict[tuple[int, int], dict[Pattern, float]] = {}
    for shape in ((8, 8), (16, 8), (8, 32)):
        size = shape[0] * shape[1]
        costs[shape] = {Dense(): size * draw(number)}
        if draw(st.booleans()):
            costs[shape] |= {Unstructured(level): size * draw(number) for level in LEVELS}
        if draw(st.booleans()):
            costs[shape] |= {NM(2, 4): size * draw(number)}
    return table(costs, draw(st.floats(0.0, 100.0)))


@unhurried
@given(
    costs=random_tables(),
    values=st.lists(st.floats(1.1, 9.0), min_size=1, max_size=6),
    data=st.data(),
    granularity=st.sampled_from(["block", "matrix", "mixed"]),
    random=st.randoms(),
)
def test_the_speed_is_reached_or_refused_with_the_most_there_is(
    costs: CostTable, values: list[float], data: st.DataObject, granularity: Granularity, random: Random
) -> None:
    scores = made(values, [data.draw(shapes) for _ in values])
    speedup = data.draw(st.floats(1.0, 6.0))
    fixed = costs.fixed_ms.get("float32", 0.0)
    curves = [costs.curve(layer.shape, "float32") for layer in scores.layers]
    dense = fixed + sum(curve.dense_ms for curve in curves)
    cheapest = [
        min(c.ms(p) for p in c.patterns(x.shape[1], 0.99, 0.01)) for c, x in zip(curves, scores.layers, strict=True)
    ]
    most = dense / (fixed + sum(cheapest))
    if speedup > most * (1 + 1e-6):
        with pytest.raises(InputError, match="out of reach"):
            planned(scores, speedup, costs, granularity=granularity)
        return
    assume(speedup <= most)  # within 1e-6 of it, rounding decides
    allocation = planned(scores, speedup, costs, granularity=granularity)
    got = dense / (fixed + spent(scores, allocation, costs))
    assert got >= speedup * (1 - 1e-6)
    assert float(allocation.provenance["predicted_speedup"]) == pytest.approx(got, rel=1e-4)  # six digits are printed
    assert all(plan.pattern.sparsity <= 0.99 for plan in allocation.plans.values())
    layers = list(scores.layers)
    random.shuffle(layers)
    again = planned(replace(scores, layers=tuple(layers)), speedup, costs, granularity=granularity)
    assert (again.plans, again.provenance) == (allocation.plans, allocation.provenance)
    assert codec.from_json(Allocation, codec.to_json(allocation)) == allocation


def test_prediction_and_damage_against_brute_force() -> None:
    scores = made([2.0, 3.0, 5.0], [(8, 8), (16, 8), (8, 8)])
    per: dict[Pattern, float] = {Dense(): 1.0, Unstructured(0.5): 0.8, Unstructured(0.52): 0.7, NM(2, 4): 0.6}
    costs = table({shape: {p: shape[0] * v for p, v in per.items()} for shape in ((8, 8), (16, 8))}, fixed=4.0)
    allocation = planned(scores, 1.3, costs, tau=0.3)
    weights = {"b00": 0.7, "b01": 0.9, "b02": 1.3}  # alpha's map of 2, 3 and 5

    def damage(name: str, pattern: Pattern) -> float:
        size = next(x.parameters for x in scores.layers if x.name == name)
        return size * equal_sparsity(pattern) ** 2 / 2 / weights[name]

    # the middle level, 0.51, lies half way between its neighbours' costs
    choices: dict[Pattern, float] = {**per, Unstructured(0.51): 0.75}
    feasible = []
    for combination in product(choices, repeat=3):
        ms = 4.0 + sum(x.shape[0] * choices[p] for x, p in zip(scores.layers, combination, strict=True))
        if ms <= 36.0 / 1.3 + 1e-9:
            feasible.append((sum(damage(x.name, p) for x, p in zip(scores.layers, combination, strict=True)), ms))
    got = sum(damage(name, plan.pattern) for name, plan in allocation.plans.items())
    best = min(feasible)[0]
    assert got <= best * (1 + float(allocation.provenance["gap_at_most"]) + 1e-6)
    assert float(allocation.provenance["dense_ms"]) == pytest.approx(36.0)
    ms = 4.0 + sum(x.shape[0] * choices[allocation.plans[x.name].pattern] for x in scores.layers)
    assert float(allocation.provenance["predicted_ms"]) == pytest.approx(ms)


def test_an_engine_that_takes_only_two_of_four_gets_only_that() -> None:
    scores = made([2.0, 3.0, 4.0, 5.0])
    costs = table({(8, 8): {Dense(): 1.0, NM(2, 4): 0.5}})
    allocation = planned(scores, 1.3, costs)
    assert [str(plan.pattern) for plan in allocation.plans.values()] == ["dense", "dense", "2:4", "2:4"]
    assert allocation.provenance["patterns"] == "2:4 x 2, dense x 2"


def test_both_kinds_where_each_is_what_the_engine_accelerates() -> None:
    # the small shape is faster unstructured, the large one only as 2:4
    scores = made([3.0, 3.0], [(8, 8), (8, 32)])
    costs = table(
        {(8, 8): {Dense(): 1.0, Unstructured(0.5): 0.5}, (8, 32): {Dense(): 4.0, Unstructured(0.5): 5.0, NM(2, 4): 2.0}}
    )
    allocation = planned(scores, 2.0, costs)
    assert [str(plan.pattern) for plan in allocation.plans.values()] == ["0.5000", "2:4"]


def test_a_matrix_that_would_not_get_faster_is_left_alone() -> None:
    scores = made([9.0, 2.0], [(8, 8), (8, 32)])
    costs = table({(8, 8): {Dense(): 1.0, Unstructured(0.9): 1.2}, (8, 32): {Dense(): 4.0, Unstructured(0.9): 1.0}})
    allocation = planned(scores, 1.5, costs)
    assert allocation.plans["b00"].pattern == Dense()


def test_heavier_tails_lose_less() -> None:
    scores = made([2.0, 3.0, 4.0])
    got = planned(scores, 2.0, proportional({(8, 8)}), tau=0.3)
    cut = [plan.pattern.sparsity for plan in got.plans.values()]
    assert cut == sorted(cut)
    assert cut[0] < cut[2]


def test_the_cap_limits_every_matrix() -> None:
    scores = made([2.0, 5.0])
    settings = Settings(cost=proportional({(8, 8)}), tau=1.0)
    allocation = latency.allocate(scores, Budget(0.0, 0.6, speedup=2.0), settings)
    assert all(plan.pattern.sparsity <= 0.6 for plan in allocation.plans.values())


def test_the_fixed_part_is_said_to_be_missing() -> None:
    scores, costs = made([2.0]), proportional({(8, 8)})
    assert "not measured" in planned(scores, 1.5, costs).provenance["fixed_ms"]
    assert "fixed_ms" not in planned(scores, 1.5, replace(costs, fixed_ms={"float32": 1.0})).provenance


COSTS = proportional({(8, 8)}, fixed=64.0)


@pytest.mark.parametrize(
    ("budget", "settings", "words"),
    [
        (Budget(0.5, speedup=2.0), Settings(cost=COSTS), "takes a speed, not a sparsity"),
        (Budget(0.0), Settings(cost=COSTS), "needs the decode speed wanted"),
        (Budget(0.0, speedup=2.0), Settings(), "tailcut cost"),
        (
            Budget(0.0, speedup=9.0),
            Settings(cost=COSTS),
            r"speedup of 9 is out of reach on tailcut: of 128 ms dense, 64 ms",
        ),
        (
            Budget(0.0, speedup=1.5),
            Settings(cost=COSTS, precision="int8"),
            r"holds float32; choose one with --precision",
        ),
    ],
)
def test_refusals(budget: Budget, settings: Settings, words: str) -> None:
    with pytest.raises(InputError, match=words):
        latency.allocate(made([2.0]), budget, settings)


def test_a_shape_that_was_not_measured_is_named() -> None:
    with pytest.raises(InputError, match=r"no dense 5 x 8 matrix at float32; measure it with `tailcut cost`"):
        planned(made([2.0], [(5, 8)]), 1.5, COSTS)


def test_two_precisions_need_a_choice() -> None:
    both = replace(COSTS, entries=(*COSTS.entries, Cost((8, 8), Dense(), "int8", 1.0)))
    with pytest.raises(InputError, match="holds float32, int8; choose one"):
        planned(made([2.0]), 1.5, both)
    assert planned(made([2.0]), 1.2, both, precision="float32").provenance["precision"] == "float32"
