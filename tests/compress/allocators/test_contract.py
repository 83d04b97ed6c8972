"""What every file in compress/allocators must keep, on random scores; the list is the folder's."""

import subprocess
import sys
from dataclasses import replace
from random import Random
from typing import cast, get_args

import hypothesis
import pytest
from hypothesis import HealthCheck, given
from hypothesis import strategies as st

from tailcut import codec, plugins
from tailcut.allocation import NM, Allocation, Budget, LayerScore, LayerScores
from tailcut.compress.allocators import Allocator, Granularity, Settings
from tailcut.errors import InputError

FOLDER = "tailcut.compress.allocators"
ALLOCATORS = plugins.names(FOLDER)
# those with STEPS meet a budget only to the nearest unit: tests/compress/allocators/test_steps.py holds them
EXACT = tuple(name for name in ALLOCATORS if not getattr(plugins.load(FOLDER, name), "STEPS", False))
METRICS = tuple(name.replace("-", "_") for name in plugins.names("tailcut.compress.metrics"))

# a busy machine is no failure: no time limit an example
unhurried = hypothesis.settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.too_slow])
every_allocator = pytest.mark.parametrize("name", ALLOCATORS)
exact_allocator = pytest.mark.parametrize("name", EXACT)


def allocator(name: str) -> Allocator:
    return cast(Allocator, plugins.load("tailcut.compress.allocators", name))


@st.composite
def layer_scores(draw: st.DrawFn) -> LayerScores:
    """Up to 6 blocks of up to 4 matrices of unequal shape and number, with every metric's value."""
    value = st.one_of(st.floats(1.01, 30.0), st.sampled_from([2.0, 3.0]))
    layers = [
        LayerScore(
            f"model.layers.{block}.m{matrix}",
            block,
            draw(st.tuples(st.integers(1, 64), st.integers(1, 64))),
            {metric: draw(value) for metric in METRICS},
        )
        for block in range(draw(st.integers(1, 6)))
        for matrix in range(draw(st.integers(1, 4)))
    ]
    return LayerScores("fingerprint", tuple(layers), sum(layer.parameters for layer in layers))


@st.composite
def budgets(draw: st.DrawFn) -> Budget:
    sparsity = draw(st.one_of(st.floats(0.0, 0.99), st.sampled_from([0.0, 0.5, 0.7, 0.8, 0.95])))
    return Budget(sparsity, draw(st.one_of(st.just(sparsity or 0.1), st.floats(max(sparsity, 0.01), 1.0))))


all_settings = st.builds(
    Settings,
    metric=st.sampled_from(METRICS),
    tau=st.one_of(st.none(), st.floats(0.0, 1.0)),
    granularity=st.sampled_from(get_args(Granularity)),
)


def cut(allocation: Allocation) -> dict[str, float]:
    return {name: plan.pattern.sparsity for name, plan in allocation.plans.items()}


def test_the_issue_s_allocators_are_there() -> None:
    assert {"alpha", "uniform"} <= set(ALLOCATORS)


@exact_allocator
@unhurried
@given(scores=layer_scores(), budget=budgets(), settings=all_settings)
def test_budget_is_met_and_no_layer_passes_the_cap(
    name: str, scores: LayerScores, budget: Budget, settings: Settings
) -> None:
    allocation = allocator(name).allocate(scores, budget, settings)
    assert list(allocation.plans) == [layer.name for layer in scores.layers]
    assert all(0.0 <= sparsity <= budget.cap for sparsity in cut(allocation).values())
    # float64 sums over at most 24 matrices
    parameters = {layer.name: layer.parameters for layer in scores.layers}
    assert allocation.sparsity(parameters) == pytest.approx(budget.sparsity, abs=1e-12)


@exact_allocator
@unhurried
@given(scores=layer_scores(), budget=budgets(), settings=all_settings, random=st.randoms())
def test_same_scores_in_any_order_give_the_same_plan(
    name: str, scores: LayerScores, budget: Budget, settings: Settings, random: Random
) -> None:
    first = allocator(name).allocate(scores, budget, settings)
    assert codec.to_json(allocator(name).allocate(scores, budget, settings)) == codec.to_json(first)
    shuffled = list(scores.layers)
    random.shuffle(shuffled)
    other = allocator(name).allocate(replace(scores, layers=tuple(shuffled)), budget, settings)
    assert cut(other) == cut(first)  # to the last bit
    assert other.provenance == first.provenance


@exact_allocator
@unhurried
@given(scores=layer_scores(), budget=budgets(), settings=all_settings)
def test_json_round_trip_and_provenance(name: str, scores: LayerScores, budget: Budget, settings: Settings) -> None:
    allocation = allocator(name).allocate(scores, budget, settings)
    assert codec.from_json(Allocation, codec.to_json(allocation)) == allocation
    said = allocation.provenance
    assert said["allocator"] == name
    assert said["scores"] == scores.model
    assert float(said["sparsity"]) == budget.sparsity
    assert float(said["cap"]) == budget.cap


@exact_allocator
@unhurried
@given(scores=layer_scores())
def test_a_pattern_is_met_or_refused_with_advice(name: str, scores: LayerScores) -> None:
    wide = tuple(replace(layer, shape=(layer.shape[0], 4 * layer.shape[1])) for layer in scores.layers)
    pattern = NM(2, 4)
    try:
        allocation = allocator(name).allocate(replace(scores, layers=wide), Budget(0.5, pattern=pattern), Settings())
    except InputError as error:
        refusal = str(error)
        assert "2:4" in refusal
        assert "--allocator" in refusal
    else:
        assert {plan.pattern for plan in allocation.plans.values()} == {pattern}


@every_allocator
def test_no_layers_is_one_sentence(name: str) -> None:
    with pytest.raises(InputError, match="name no layers"):
        allocator(name).allocate(LayerScores("x", (), 0), Budget(0.5), Settings())


@every_allocator
def test_empty_matrix_is_named(name: str) -> None:
    layers = (LayerScore("model.layers.0.q", 0, (0, 4), dict.fromkeys(METRICS, 2.0)),)
    with pytest.raises(InputError, match=r"model\.layers\.0\.q"):
        allocator(name).allocate(LayerScores("x", layers, 1), Budget(0.5), Settings())


def test_allocating_needs_no_torch() -> None:
    loads = "; ".join(f"import tailcut.compress.allocators.{name.replace('-', '_')}" for name in ALLOCATORS)
    code = f"import sys; {loads}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
