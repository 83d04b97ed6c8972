"""Mean bits, shared out over the layers beside any sparsity: budgets to the unit, bounds, order, and refusals."""

from dataclasses import replace
from itertools import combinations
from random import Random

import hypothesis
import pytest
from hypothesis import HealthCheck, given
from hypothesis import strategies as st

from tailcut import codec
from tailcut.allocation import NM, Allocation, Bits, Budget, Dense, LayerPlan, LayerScore, LayerScores, Unstructured
from tailcut.compress.allocators import Granularity, Settings, _bits, allocate, alpha
from tailcut.errors import InputError

# a busy machine is no failure: no time limit an example
unhurried = hypothesis.settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.too_slow])
granularities = st.sampled_from(("block", "matrix", "mixed"))
taus = st.one_of(st.none(), st.floats(0.0, 1.0))


@st.composite
def scores(draw: st.DrawFn) -> LayerScores:
    """Up to 6 blocks of up to 4 matrices of unequal shape."""
    value = st.one_of(st.floats(1.01, 30.0), st.sampled_from([2.0, 3.0]))
    layers = [
        LayerScore(
            f"model.layers.{block}.m{matrix}",
            block,
            draw(st.tuples(st.integers(1, 40), st.integers(1, 64))),
            {"alpha_peak": draw(value)},
        )
        for block in range(draw(st.integers(1, 6)))
        for matrix in range(draw(st.integers(1, 4)))
    ]
    return LayerScores("fingerprint", tuple(layers), sum(layer.parameters for layer in layers))


def made(values: list[float]) -> LayerScores:
    """One matrix a block."""
    layers = tuple(LayerScore(f"b{b:02d}", b, (1, 8), {"alpha_peak": value}) for b, value in enumerate(values))
    return LayerScores("made", layers, 8 * len(layers))


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


def bits_of(given_: LayerScores, budget: Budget, settings: Settings) -> dict[str, Bits | None]:
    allocation = allocate("uniform", given_, budget, settings)
    return {name: plan.bits for name, plan in allocation.plans.items()}


def test_worked_example() -> None:
    # rungs 2, 3, 4, 8 at places 0 to 3; tau 1/3 puts six equal units at c + 1, .6, .2, -.2, -.6, -1. A mean of 4 makes
    # c = 1.6: bits 6.4, 4.8, 3.8, 3.4, 3, 2.6. Rounded down they leave 5; remainder .8 takes 1, the first of two .6 the rest
    given_ = made([2.0, 2.4, 2.8, 3.2, 3.6, 4.0])
    got = bits_of(given_, Budget(0.0, bits=4.0), Settings(bit_tau=1 / 3))
    assert list(got.values()) == [8, 4, 4, 3, 3, 2]


@unhurried
@given(
    values=st.lists(st.floats(1.1, 9.0), min_size=1, max_size=16),
    mean=st.floats(2.0, 8.0),
    tau=st.floats(0.01, 1.0),
)
def test_among_equal_matrices_a_heavier_tail_never_has_fewer_bits(values: list[float], mean: float, tau: float) -> None:
    got = bits_of(made(values), Budget(0.0, bits=mean), Settings(bit_tau=tau))
    pairs = sorted(zip(values, got.values(), strict=True), key=lambda pair: pair[0])
    for (low, more), (high, fewer) in combinations(pairs, 2):  # a low alpha is a heavy tail
        assert high - low < 1e-5 or (more or 0) >= (fewer or 0)


@pytest.mark.parametrize("granularity", ["block", "matrix", "mixed"])
def test_a_mean_that_is_a_choice_is_still_a_mixture(granularity: Granularity) -> None:
    values = [2.0 + 0.1 * number for number in range(30)]
    got = list(bits_of(made(values), Budget(0.0, bits=4.0), Settings(granularity=granularity)).values())
    assert (got[0], got[-1]) == (8, 3)
    assert sum(int(bits or 0) for bits in got) == 120


def test_bit_tau_zero_is_uniform_and_needs_no_metric() -> None:
    given_ = replace(made([2.0, 9.0]), layers=tuple(replace(x, values={}) for x in made([2.0, 9.0]).layers))
    for bits in (8, 4, 3, 2):
        assert set(bits_of(given_, Budget(0.0, bits=float(bits)), Settings(bit_tau=0.0)).values()) == {bits}


CHOICES: list[tuple[Bits, ...]] = [(8, 4, 3, 2), (8, 4), (4, 3, 2), (8, 2)]


@unhurried
@given(
    given_=scores(),
    choices=st.sampled_from(CHOICES),
    share=st.floats(0.0, 1.0),
    tau=taus,
    granularity=granularities,
    random=st.randoms(),
)
def test_mean_bits_are_met_to_the_unit_and_never_passed(
    given_: LayerScores,
    choices: tuple[Bits, ...],
    share: float,
    tau: float | None,
    granularity: Granularity,
    random: Random,
) -> None:
    mean = min(choices) + share * (max(choices) - min(choices))
    budget = Budget(0.5, bits=mean, bit_choices=choices)
    settings = Settings(bit_tau=tau, granularity=granularity)
    allocation = allocate("alpha", given_, budget, settings)
    given_bits = {name: plan.bits or 2 for name, plan in allocation.plans.items()}
    assert {plan.bits for plan in allocation.plans.values()} <= set(choices)
    parameters = {layer.name: layer.parameters for layer in given_.layers}
    total = sum(parameters.values())
    left = mean * total - sum(given_bits[name] * parameters[name] for name in parameters)
    assert left >= -1e-6 * total
    sizes = unit_sizes(given_, granularity)
    ladder = sorted(choices)
    for name, bits in given_bits.items():
        if bits < ladder[-1]:
            assert sizes[name] * (ladder[ladder.index(bits) + 1] - bits) > left - 1e-6 * total
    # the sparsities are what alpha alone plans
    alone = alpha.allocate(given_, Budget(0.5), Settings(granularity=granularity))
    assert [plan.pattern for plan in allocation.plans.values()] == [plan.pattern for plan in alone.plans.values()]
    again = allocate("alpha", shuffled(given_, random), budget, settings)
    assert (again.plans, again.provenance) == (allocation.plans, allocation.provenance)
    assert codec.from_json(Allocation, codec.to_json(allocation)) == allocation


def test_bits_join_any_pattern_and_say_so() -> None:
    given_ = made([2.0, 3.0, 4.0, 5.0])
    allocation = allocate("sparse24", given_, Budget(0.25, bits=3.5), Settings(metric="alpha-peak", bit_tau=0.4))
    assert {type(plan.pattern) for plan in allocation.plans.values()} == {NM, Dense}
    assert None not in {plan.bits for plan in allocation.plans.values()}
    assert allocation.provenance["bits"] == "3.5"
    assert float(allocation.provenance["bits_planned"]) <= 3.5
    assert allocation.provenance["bit_metric"] == "alpha_peak"


def test_without_a_budget_of_bits_nothing_changes() -> None:
    plain = Allocation({"m": LayerPlan(Unstructured(0.5))}, {})
    assert _bits.with_bits(plain, made([2.0]), Budget(0.5), Settings()) is plain


def test_bit_settings_without_bits_are_refused() -> None:
    with pytest.raises(InputError, match="uniform allocator does not read bit_tau"):
        allocate("uniform", made([2.0]), Budget(0.5), Settings(bit_tau=0.1))


@pytest.mark.parametrize(
    ("bits", "choices", "words"),
    [
        (9.0, (8, 4), "9.0 bits a weight on average cannot be made of 4 to 8 bits"),
        (3.0, (8, 4), "3.0 bits"),
        (float("nan"), (8, 4), "nan bits"),
        (4.0, (), "bit choices must be some of"),
        (4.0, (5, 4), "bit choices must be some of"),
    ],
)
def test_budgets_of_bits_that_cannot_be(bits: float, choices: tuple[Bits, ...], words: str) -> None:
    with pytest.raises(InputError, match=words):
        Budget(0.0, bits=bits, bit_choices=choices)


def test_a_speedup_is_for_the_latency_allocator() -> None:
    with pytest.raises(InputError, match="alpha allocator takes a sparsity, not a speedup; use --allocator latency"):
        allocate("alpha", made([2.0]), Budget(0.0, speedup=2.0), Settings())
    with pytest.raises(InputError, match="speedup must be at least 1"):
        Budget(0.0, speedup=0.5)
