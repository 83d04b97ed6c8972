"""AlphaPruning's allocation against the golden numbers of shared/spec/algorithms.md, section 9, and its edges."""

from pathlib import Path

import numpy as np
import pytest

from tailcut import plugins
from tailcut.allocation import NM, Budget, LayerScore, LayerScores
from tailcut.compress.allocators import Granularity, Settings, alpha
from tailcut.compress.allocators._budget import Vector, water_fill
from tailcut.compress.allocators._values import block_means, linear_map
from tailcut.errors import InputError

REFERENCE = Path(__file__).parents[3] / ".." / "shared" / "reference" / "alpha"
needs_reference = pytest.mark.skipif(not REFERENCE.is_dir(), reason="the published metric values are not here")

METRICS = [name.replace("-", "_") for name in plugins.names("tailcut.compress.metrics")]

# LLaMA: q, k, v, o, gate, up, down; the published files do not name their columns, block means do not depend on it
SHAPES = [(4096, 4096)] * 4 + [(11008, 4096)] * 2 + [(4096, 11008)]
MEANS_7B = [
    2.6222, 2.8899, 2.969, 2.9645, 3.09, 3.0638, 2.9606, 2.7456, 2.7752, 2.6086, 2.7167, 2.7297, 2.7843, 2.8517,
    2.8966, 3.1767, 3.123, 3.4461, 3.8715, 3.606, 3.8945, 4.066, 3.7551, 3.7146, 3.9941, 4.2204, 4.1024, 4.1604,
    3.8508, 4.0934, 4.1601, 3.5374,
]  # fmt: skip
SPARSITIES_7B = [
    0.5704, 0.6176, 0.6315, 0.6307, 0.6529, 0.6482, 0.6301, 0.5922, 0.5974, 0.568, 0.5871, 0.5894, 0.599, 0.6109,
    0.6188, 0.6681, 0.6587, 0.7156, 0.7906, 0.7438, 0.7946, 0.8248, 0.7701, 0.7629, 0.8122, 0.8521, 0.8313, 0.8415,
    0.7869, 0.8297, 0.8414, 0.7317,
]  # fmt: skip


def published(model: str) -> LayerScores:
    table = np.loadtxt(REFERENCE / f"{model}.csv", delimiter=",", comments="#")
    layers = [
        LayerScore(f"model.layers.{block}.linear{column}", block, SHAPES[column], {"alpha_peak": float(value)})
        for block, row in enumerate(table)
        for column, value in enumerate(row)
    ]
    return LayerScores(model, tuple(layers), sum(layer.parameters for layer in layers))


def made(values: list[list[float]], sizes: list[list[int]] | None = None) -> LayerScores:
    """Blocks of matrices with given metric values; `sizes` are parameter counts (1 by default)."""
    layers = [
        LayerScore(f"b{b}.m{m}", b, (1, sizes[b][m] if sizes else 1), {"alpha_peak": value})
        for b, row in enumerate(values)
        for m, value in enumerate(row)
    ]
    return LayerScores("made", tuple(layers), sum(layer.parameters for layer in layers))


def sparsities(
    scores: LayerScores, budget: Budget, tau: float | None = 0.3, granularity: Granularity = "block"
) -> list[float]:
    """Planned sparsity of each matrix, in the scores' order."""
    allocation = alpha.allocate(scores, budget, Settings(tau=tau, granularity=granularity))
    return [plan.pattern.sparsity for plan in allocation.plans.values()]


def global_sparsity(scores: LayerScores, values: list[float]) -> float:
    weights = [layer.parameters for layer in scores.layers]
    return float(np.average(values, weights=weights))


@pytest.mark.parametrize("granularity", ["block", "matrix", "mixed"])
def test_worked_example(granularity: Granularity) -> None:
    scores = made([[2.0], [3.0], [4.0]], [[1], [1], [2]])
    expected = [0.4558139535, 0.6511627907, 0.8465116279]
    assert sparsities(scores, Budget(0.7), 0.3, granularity) == pytest.approx(expected, abs=1e-10)


def test_worked_example_step_by_step() -> None:
    """t of equation 3, and the one factor eta between t and the sparsities."""
    proportions = linear_map(np.array([2.0, 3.0, 4.0]), 0.3)
    assert proportions == pytest.approx([0.7, 1.0, 1.3], abs=1e-15)
    got = sparsities(made([[2.0], [3.0], [4.0]], [[1], [1], [2]]), Budget(0.7), 0.3)
    assert got / proportions == pytest.approx([0.6511627907] * 3, abs=1e-10)
    assert np.average(got, weights=[1, 1, 2]) == pytest.approx(0.7, abs=1e-15)


@needs_reference
def test_block_means_of_llama_7b() -> None:
    layers = published("llama-7b-hf").layers
    means = block_means(layers, np.array([layer.values["alpha_peak"] for layer in layers]))
    assert [round(mean, 4) for mean in means.values()] == MEANS_7B


@needs_reference
def test_block_sparsities_of_llama_7b_equal_the_published_scheme() -> None:
    got = sparsities(published("llama-7b-hf"), Budget(0.7), 0.2)
    assert [round(value, 4) for value in got[::7]] == SPARSITIES_7B
    assert max(got) / 1.2 == pytest.approx(0.71004, abs=1e-5)  # eta


@needs_reference
@pytest.mark.parametrize(
    ("model", "least", "most"),
    [
        ("llama-7b-hf", 0.5006, 0.9297),
        ("llama-13b-hf", 0.4786, 0.8889),
        ("llama-30b-hf", 0.4334, 0.8050),
        ("llama-65b-hf", 0.4256, 0.7903),
        ("llama2-7b-hf", 0.4619, 0.8578),
        ("llama2-13b-hf", 0.4651, 0.8638),
        ("llama2-70b-hf", 0.4658, 0.8650),
    ],
)
def test_published_ranges_at_70_percent(model: str, least: float, most: float) -> None:
    got = sparsities(published(model), Budget(0.7), 0.3)
    # printed to 4 decimals
    assert (min(got), max(got)) == pytest.approx((least, most), abs=6e-5)


@needs_reference
@pytest.mark.parametrize(
    ("model", "sparsity", "tau", "closed_form"),
    [("llama-7b-hf", 0.7, 0.4, 1.0085), ("llama-13b-hf", 0.7, 0.5, 1.0100), ("llama-7b-hf", 0.8, 0.3, 1.0625)],
)
def test_over_unity_cases_are_capped_with_the_budget_exact(
    model: str, sparsity: float, tau: float, closed_form: float
) -> None:
    scores = published(model)
    means = np.array(
        list(block_means(scores.layers, np.array([x.values["alpha_peak"] for x in scores.layers])).values())
    )
    proportions = (means - means.min()) / np.ptp(means) * 2 * tau + (1 - tau)
    # blocks are equally large, so eta needs no weights: the published closed form passes 1
    assert sparsity / proportions.mean() * proportions.max() == pytest.approx(closed_form, abs=6e-5)
    got = sparsities(scores, Budget(sparsity, cap=0.99), tau)
    assert max(got) == 0.99
    assert global_sparsity(scores, got) == pytest.approx(sparsity, abs=1e-12)
    assert np.corrcoef(np.repeat(means, 7), got)[0, 1] > 0.99  # still follows the metric


@needs_reference
@pytest.mark.parametrize("granularity", ["block", "matrix", "mixed"])
def test_budget_is_exact_on_real_shapes(granularity: Granularity) -> None:
    scores = published("llama2-70b-hf")
    for sparsity in (0.5, 0.7, 0.85):
        got = sparsities(scores, Budget(sparsity), None, granularity)
        assert global_sparsity(scores, got) == pytest.approx(sparsity, abs=1e-12)


def test_higher_alpha_is_cut_more() -> None:
    got = sparsities(made([[5.0], [2.0], [3.0]]), Budget(0.6))
    assert got[0] > got[2] > got[1]


def test_a_block_scores_the_unweighted_mean_of_its_matrices() -> None:
    # block 0 has mean 3 whatever the sizes, block 1 has 2, block 2 has 4
    scores = made([[2.0, 4.0], [2.0, 2.0], [4.0, 4.0]], [[1, 99], [10, 10], [5, 5]])
    got = sparsities(scores, Budget(0.5), 0.2)
    assert got[0] == got[1]
    assert got[0] / got[2] == pytest.approx(1.0 / 0.8)
    assert got[4] / got[2] == pytest.approx(1.2 / 0.8)


def test_blocks_may_have_unequal_numbers_of_matrices() -> None:
    scores = made([[2.0], [3.0, 3.0, 3.0], [4.0, 4.0]])
    got = sparsities(scores, Budget(0.5), 0.2)
    assert got[1] / got[0] == pytest.approx(1.0 / 0.8)
    assert global_sparsity(scores, got) == pytest.approx(0.5, abs=1e-15)


def test_matrix_granularity_looks_at_each_matrix() -> None:
    got = sparsities(made([[2.0, 4.0], [3.0, 3.0]]), Budget(0.5), 0.2, "matrix")
    assert got == pytest.approx([0.4, 0.6, 0.5, 0.5])


def test_mixed_keeps_every_block_s_budget_and_the_order_inside() -> None:
    rng = np.random.default_rng(0)
    values = (1.5 + 4 * rng.random((6, 4))).tolist()
    sizes = rng.integers(1, 50, (6, 4)).tolist()
    scores = made(values, sizes)
    block = np.reshape(sparsities(scores, Budget(0.6), 0.3, "block"), (6, 4))
    mixed = np.reshape(sparsities(scores, Budget(0.6), 0.3, "mixed"), (6, 4))
    for row in range(6):
        assert np.average(mixed[row], weights=sizes[row]) == pytest.approx(block[row, 0], abs=1e-12)
        assert np.array_equal(np.argsort(mixed[row]), np.argsort(values[row]))


@pytest.mark.parametrize("granularity", ["block", "matrix", "mixed"])
def test_equal_metrics_give_the_uniform_plan(granularity: Granularity) -> None:
    got = sparsities(made([[3.0, 3.0], [3.0, 3.0]], [[1, 7], [20, 3]]), Budget(0.65), 0.3, granularity)
    assert got == pytest.approx([0.65] * 4, abs=1e-15)


def test_tau_zero_is_uniform() -> None:
    assert sparsities(made([[2.0], [9.0]]), Budget(0.4), 0.0) == pytest.approx([0.4, 0.4])


def test_tau_one_may_spare_a_layer_wholly() -> None:
    assert sparsities(made([[2.0], [3.0], [4.0]]), Budget(0.4), 1.0) == pytest.approx([0.0, 0.4, 0.8])


def test_a_spectrum_without_a_tail_does_not_set_the_scale() -> None:
    # 12 is the clamp: 1000 and 12 mean the same
    wild, clamped = made([[2.0], [3.0], [1000.0]]), made([[2.0], [3.0], [12.0]])
    assert sparsities(wild, Budget(0.5)) == sparsities(clamped, Budget(0.5))


@pytest.mark.parametrize(
    ("sparsity", "tau"),
    [(0.1, 0.1), (0.5, 0.1), (0.6, 0.2), (0.7, 0.3), (0.75, 0.25), (0.8, 0.2), (0.95, 0.2)],
)
def test_default_tau(sparsity: float, tau: float) -> None:
    assert alpha.default_tau(sparsity) == pytest.approx(tau)
    scores = made([[2.0], [3.0]])
    assert alpha.allocate(scores, Budget(sparsity), Settings()).provenance["tau"] == repr(tau)


def test_metric_is_spelt_with_dash_or_underscore() -> None:
    scores = made([[2.0], [3.0]])
    plans = [alpha.allocate(scores, Budget(0.5), Settings(metric=m)).plans for m in ("alpha-peak", "alpha_peak")]
    assert plans[0] == plans[1]


def test_missing_metric_names_layer_and_remedy() -> None:
    with pytest.raises(InputError, match=r"b0\.m0: no value of alpha_mid \(measured: alpha_peak\).*--metric alpha_mid"):
        alpha.allocate(made([[2.0]]), Budget(0.5), Settings(metric="alpha-mid"))


def test_unknown_metric_lists_the_choices() -> None:
    with pytest.raises(InputError, match=r"unknown metric 'nope'.*alpha-peak"):
        alpha.allocate(made([[2.0]]), Budget(0.5), Settings(metric="nope"))


def test_infinite_score_is_refused() -> None:
    with pytest.raises(InputError, match=r"b1\.m0: alpha_peak is inf"):
        alpha.allocate(made([[2.0], [float("inf")]]), Budget(0.5), Settings())


def test_pattern_is_refused_with_advice() -> None:
    with pytest.raises(InputError, match=r"2:4.*--allocator uniform"):
        alpha.allocate(made([[2.0]]), Budget(0.5, pattern=NM(2, 4)), Settings())


@pytest.mark.parametrize("tau", [-0.1, 1.1, float("nan")])
def test_tau_outside_zero_to_one(tau: float) -> None:
    with pytest.raises(InputError, match=r"tau must be in \[0, 1\]"):
        Settings(tau=tau)


def test_unknown_granularity() -> None:
    with pytest.raises(InputError, match="block, matrix or mixed"):
        Settings(granularity="row")  # type: ignore[arg-type]


def bisected(proportions: Vector, parameters: Vector, sparsity: float, cap: float) -> Vector:
    """min(cap, eta * proportions) with eta found by bisection."""
    low, high = 0.0, 1e6
    for _ in range(200):
        eta = (low + high) / 2
        met = np.average(np.minimum(cap, eta * proportions), weights=parameters)
        low, high = (low, eta) if met > sparsity else (eta, high)
    return np.minimum(cap, low * proportions)


@pytest.mark.parametrize("seed", range(20))
def test_water_filling_equals_bisection(seed: int) -> None:
    rng = np.random.default_rng(seed)
    size = int(rng.integers(1, 12))
    proportions, parameters = 0.05 + rng.random(size), rng.integers(1, 100, size).astype(float)
    sparsity = float(rng.uniform(0.1, 0.9))
    cap = float(rng.uniform(sparsity, 1.0))
    got = water_fill(proportions, parameters, sparsity, cap)
    np.testing.assert_allclose(got, bisected(proportions, parameters, sparsity, cap), atol=1e-9)


def test_what_capped_layers_leave_goes_to_layers_of_proportion_zero() -> None:
    got = water_fill(np.array([0.0, 0.0, 1.0]), np.array([1.0, 3.0, 4.0]), 0.7, 0.8)
    assert got == pytest.approx([0.6, 0.6, 0.8])


@pytest.mark.parametrize("name", METRICS)
def test_any_metric_cuts_at_the_end_its_file_names(name: str) -> None:
    values = [0.1, 0.3, 0.2]
    layers = tuple(LayerScore(f"b{b}", b, (4, 4), {name: value}) for b, value in enumerate(values))
    plans = alpha.allocate(LayerScores("x", layers, 48), Budget(0.6), Settings(metric=name, tau=0.3)).plans
    got = [plan.pattern.sparsity for plan in plans.values()]
    sign = plugins.load("tailcut.compress.metrics", name).SIGN
    assert np.argsort(got).tolist() == ([0, 2, 1] if sign == 1 else [1, 2, 0])
    assert np.mean(got) == pytest.approx(0.6, abs=1e-15)
