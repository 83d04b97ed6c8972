"""What every file in compress/allocators must keep, on random scores; the list is the folder's."""

import inspect
import subprocess
import sys
from dataclasses import fields, replace
from random import Random
from typing import Any, get_args

import hypothesis
import numpy as np
import pytest
from hypothesis import HealthCheck, given
from hypothesis import strategies as st

from tailcut import codec, plugins
from tailcut.allocation import NM, Allocation, Budget, LayerScore, LayerScores
from tailcut.compress import allocators
from tailcut.compress.allocators import Granularity, Settings, Solver, load
from tailcut.errors import InputError

FOLDER = "tailcut.compress.allocators"
ALLOCATORS = plugins.names(FOLDER)
# those with STEPS meet a budget only to the nearest unit: tests/compress/allocators/test_steps.py holds them
EXACT = tuple(name for name in ALLOCATORS if not getattr(plugins.load(FOLDER, name), "STEPS", False))
METRICS = tuple(name.replace("-", "_") for name in plugins.names("tailcut.compress.metrics"))
VALUES = (*METRICS, "magnitude.square")

# a busy machine is no failure: no time limit an example
unhurried = hypothesis.settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.too_slow])
every_allocator = pytest.mark.parametrize("name", ALLOCATORS)
exact_allocator = pytest.mark.parametrize("name", EXACT)


# curves have 1025 points; the rules are the same with fewer
POINTS = 5


@st.composite
def layer_scores(draw: st.DrawFn) -> LayerScores:
    """Up to 6 blocks of up to 4 matrices of unequal shape and number, with every metric's value, curve and pairs."""
    value = st.one_of(st.floats(1.01, 30.0), st.sampled_from([2.0, 3.0]))
    # weights of one value, of few values, and mostly zero are what ties and jumps come from
    weight = st.one_of(st.floats(0.0, 10.0), st.sampled_from([0.0, 0.5, 1.0]))
    curve = st.lists(weight, min_size=POINTS, max_size=POINTS).map(lambda numbers: tuple(sorted(numbers)))
    layers = [
        LayerScore(
            f"model.layers.{block}.m{matrix}",
            block,
            draw(st.tuples(st.integers(1, 64), st.integers(1, 64))),
            # an allocator reads one of them; a number for each would only make the examples slow to draw
            dict.fromkeys(VALUES, draw(value)),
            dict.fromkeys(("magnitude", "wanda"), draw(curve)),
        )
        for block in range(draw(st.integers(1, 6)))
        for matrix in range(draw(st.integers(1, 4)))
    ]
    pairs = redundancies([layer.block for layer in layers], draw(st.integers(0, 2**32 - 1)))
    return LayerScores("fingerprint", tuple(layers), sum(layer.parameters for layer in layers), pairs=pairs)


def redundancies(blocks: list[int], seed: int) -> dict[str, tuple[tuple[float, ...], ...]]:
    """Redundancies in [0, 1] between matrices, and between their blocks, as `als` measures them."""
    rng = np.random.default_rng(seed)

    def symmetric(size: int) -> Any:
        upper = np.triu(rng.random((size, size)), 1)
        return upper + upper.T + np.eye(size)

    between_blocks = symmetric(max(blocks) + 1)[np.ix_(blocks, blocks)]
    return {"als": as_rows(symmetric(len(blocks))), "als.block": as_rows(between_blocks)}


def as_rows(matrix: Any) -> tuple[tuple[float, ...], ...]:
    return tuple(tuple(float(number) for number in row) for row in matrix)


@st.composite
def budgets(draw: st.DrawFn) -> Budget:
    sparsity = draw(st.one_of(st.floats(0.0, 0.99), st.sampled_from([0.0, 0.5, 0.7, 0.8, 0.95])))
    return Budget(sparsity, draw(st.one_of(st.just(sparsity or 0.1), st.floats(max(sparsity, 0.01), 1.0))))


def settings_of(name: str, budget: Budget) -> st.SearchStrategy[Settings]:
    """Any settings that the allocator reads. Not compat: what it gives up is just what is asserted here."""
    share = st.floats(0.0, 1.0)
    strategies: dict[str, st.SearchStrategy[Any]] = {
        "metric": st.sampled_from(("magnitude", "wanda") if name == "global" else METRICS),
        "tau": share,
        "granularity": st.sampled_from(get_args(Granularity)),
        "spread": st.floats(0.0, 0.5),
        "beta": share,
        "solver": st.sampled_from(get_args(Solver)),
        "bounds": st.tuples(share, share).map(
            lambda ends: (ends[0] * budget.sparsity, min(1.0, budget.sparsity + ends[1] * (1.0 - budget.sparsity)))
        ),
        "step": st.sampled_from([0.001, 0.005, 0.05, 0.5]),
    }
    read = [setting for setting in load(name).SETTINGS if setting != "compat"]
    return st.builds(Settings, **{setting: st.none() | strategies[setting] for setting in read})


def cut(allocation: Allocation) -> dict[str, float]:
    return {name: plan.pattern.sparsity for name, plan in allocation.plans.items()}


def test_the_issue_s_allocators_are_there() -> None:
    assert {"alpha", "als", "atp", "dlp", "er", "erk", "global", "lamp", "owl", "uniform"} <= set(ALLOCATORS)


@exact_allocator
@unhurried
@given(scores=layer_scores(), budget=budgets(), data=st.data())
def test_budget_is_met_and_no_layer_passes_the_cap(
    name: str, scores: LayerScores, budget: Budget, data: st.DataObject
) -> None:
    settings = data.draw(settings_of(name, budget))
    allocation = load(name).allocate(scores, budget, settings)
    assert list(allocation.plans) == [layer.name for layer in scores.layers]
    assert all(0.0 <= sparsity <= budget.cap for sparsity in cut(allocation).values())
    # float64 sums over at most 24 matrices
    parameters = {layer.name: layer.parameters for layer in scores.layers}
    assert allocation.sparsity(parameters) == pytest.approx(budget.sparsity, abs=1e-12)


@exact_allocator
@unhurried
@given(scores=layer_scores(), budget=budgets(), data=st.data(), random=st.randoms())
def test_same_scores_in_any_order_give_the_same_plan(
    name: str, scores: LayerScores, budget: Budget, data: st.DataObject, random: Random
) -> None:
    settings = data.draw(settings_of(name, budget))
    first = load(name).allocate(scores, budget, settings)
    assert codec.to_json(load(name).allocate(scores, budget, settings)) == codec.to_json(first)
    order = list(range(len(scores.layers)))
    random.shuffle(order)
    other = load(name).allocate(reordered(scores, order), budget, settings)
    assert cut(other) == cut(first)  # to the last bit
    assert other.provenance == first.provenance


def reordered(scores: LayerScores, order: list[int]) -> LayerScores:
    """The same scores with the layers, and with them rows and columns of the pairs, in another order."""
    pairs = {key: as_rows(np.array(rows)[np.ix_(order, order)]) for key, rows in scores.pairs.items()}
    return replace(scores, layers=tuple(scores.layers[index] for index in order), pairs=pairs)


@exact_allocator
@unhurried
@given(scores=layer_scores(), budget=budgets(), data=st.data())
def test_json_round_trip_and_provenance(name: str, scores: LayerScores, budget: Budget, data: st.DataObject) -> None:
    settings = data.draw(settings_of(name, budget))
    allocation = load(name).allocate(scores, budget, settings)
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
        allocation = load(name).allocate(replace(scores, layers=wide), Budget(0.5, pattern=pattern), Settings())
    except InputError as error:
        refusal = str(error)
        assert "2:4" in refusal
        assert "--allocator" in refusal
    else:
        assert {plan.pattern for plan in allocation.plans.values()} == {pattern}


@every_allocator
def test_no_layers_is_one_sentence(name: str) -> None:
    with pytest.raises(InputError, match="name no layers"):
        load(name).allocate(LayerScores("x", (), 0), Budget(0.5), Settings())


@every_allocator
def test_empty_matrix_is_named(name: str) -> None:
    layers = (LayerScore("model.layers.0.q", 0, (0, 4), dict.fromkeys(METRICS, 2.0)),)
    with pytest.raises(InputError, match=r"model\.layers\.0\.q"):
        load(name).allocate(LayerScores("x", layers, 1), Budget(0.5), Settings())


def same(blocks: int, matrices: int) -> LayerScores:
    """Matrices that nothing tells apart but their place."""
    curve = tuple(np.linspace(0.0, 1.0, POINTS))
    layers = [
        LayerScore(f"b{block}.m{m}", block, (8, 16), dict.fromkeys(VALUES, 2.0), {"magnitude": curve, "wanda": curve})
        for block in range(blocks)
        for m in range(matrices)
    ]
    alike = as_rows(np.full((len(layers), len(layers)), 0.5) + 0.5 * np.eye(len(layers)))
    return LayerScores("same", tuple(layers), 128 * len(layers), pairs={"als": alike, "als.block": alike})


@pytest.mark.parametrize("name", [name for name in EXACT if name != "atp"])  # atp looks at nothing but place
@pytest.mark.parametrize("sparsity", [0.3, 0.52, 0.7, 0.9])
def test_what_nothing_tells_apart_is_cut_alike(name: str, sparsity: float) -> None:
    values = cut(load(name).allocate(same(5, 3), Budget(sparsity), Settings())).values()
    assert list(values) == pytest.approx([sparsity] * 15, abs=1e-12)  # float64 sums over 15 matrices


@exact_allocator
def test_a_single_matrix_takes_the_whole_budget(name: str) -> None:
    (value,) = cut(load(name).allocate(same(1, 1), Budget(0.6), Settings())).values()
    assert value == pytest.approx(0.6, abs=1e-15)


@pytest.mark.parametrize("name", [name for name in ALLOCATORS if load(name).METRICS])
def test_missing_scores_say_what_to_measure(name: str) -> None:
    bare = tuple(replace(layer, values={}, curves={}) for layer in same(2, 2).layers)
    with pytest.raises(InputError, match=rf"run tailcut measure --metric {load(name).METRICS[0]}"):
        load(name).allocate(LayerScores("x", bare, 512), Budget(0.5), Settings())


@every_allocator
def test_a_setting_that_would_be_ignored_is_refused(name: str) -> None:
    values: dict[str, Any] = {
        "metric": "owl", "tau": 0.0, "granularity": "block", "spread": 0.1, "beta": 0.01, "compat": True,
        "solver": "lp", "bounds": (0.1, 0.9), "step": 0.01,
    }  # fmt: skip
    for setting in set(values) - set(load(name).SETTINGS):
        with pytest.raises(InputError, match=f"the {name} allocator does not read {setting}"):
            allocators.allocate(name, same(2, 2), Budget(0.5), Settings(**{setting: values[setting]}))


@every_allocator
def test_the_explanation_is_one_paragraph_that_names_every_setting(name: str) -> None:
    text = inspect.getdoc(load(name).allocate) or ""
    assert 100 < len(text) < 800
    assert "\n\n" not in text
    assert "Needs" in text
    assert [setting for setting in load(name).SETTINGS if setting not in text] == []
    assert set(load(name).SETTINGS) <= {item.name for item in fields(Settings)}


def test_metrics_needed_are_the_one_asked_for_or_the_allocator_s_own() -> None:
    assert allocators.metrics_needed("alpha", None) == ("alpha_peak",)
    assert allocators.metrics_needed("alpha", "stable-rank") == ("stable_rank",)
    assert allocators.metrics_needed("owl", None) == ("owl",)
    assert allocators.metrics_needed("global", "wanda") == ("wanda",)
    assert allocators.metrics_needed("er", None) == ()


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        ({"spread": 0.6}, r"spread must be in \[0, 0\.5\], got 0\.6"),
        ({"beta": -0.1}, r"beta must be in \[0, 1\]"),
        ({"step": 0.0}, "step must be above 0"),
        ({"step": float("nan")}, r"step must be in \[0, 0\.5\]"),
        ({"solver": "ip"}, "solver must be lp or qp, got 'ip'"),
        ({"bounds": (0.7, 0.3)}, "the lower first"),
        ({"bounds": (-0.1, 0.3)}, r"bounds must be two sparsities in \[0, 1\]"),
    ],
)
def test_settings_outside_their_range_are_one_sentence(wrong: dict[str, Any], sentence: str) -> None:
    with pytest.raises(InputError, match=sentence):
        Settings(**wrong)


def test_allocating_needs_no_torch() -> None:
    loads = f"from tailcut.compress.allocators import load; [load(name) for name in {ALLOCATORS!r}]"
    code = f"import sys; {loads}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
