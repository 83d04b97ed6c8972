"""One threshold for the whole model, against sorting all weights."""

from dataclasses import replace

import numpy as np
import pytest

from tailcut.allocation import Budget, LayerScore, LayerScores
from tailcut.compress.allocators import Settings, load
from tailcut.compress.allocators._budget import Vector
from tailcut.errors import InputError

global_ = load("global")
FRACTIONS = np.linspace(0.0, 1.0, 1025)


def measured(weights: list[Vector], curve: str = "magnitude") -> LayerScores:
    layers = tuple(
        LayerScore(f"m{index}", index, (1, w.size), {}, {curve: tuple(np.quantile(np.abs(w), FRACTIONS))})
        for index, w in enumerate(weights)
    )
    return LayerScores("x", layers, 1)


def sparsities(scores: LayerScores, budget: Budget, settings: Settings | None = None) -> list[float]:
    plans = global_.allocate(scores, budget, settings or Settings()).plans
    return [plan.pattern.sparsity for plan in plans.values()]


def sorted_together(weights: list[Vector], sparsity: float) -> list[float]:
    """Fractions below the threshold that a sort of all weights gives."""
    everything = np.sort(np.concatenate([np.abs(w) for w in weights]))
    threshold = everything[round(sparsity * everything.size) - 1]
    return [float((np.abs(w) <= threshold).mean()) for w in weights]


def heavy_tailed(sizes: list[int], seed: int) -> list[Vector]:
    rng = np.random.default_rng(seed)
    return [rng.standard_t(3 + index, size) * (0.5 + rng.random()) for index, size in enumerate(sizes)]


@pytest.mark.parametrize("sparsity", [0.3, 0.5, 0.7, 0.9])
@pytest.mark.parametrize("seed", range(3))
def test_equals_a_sort_of_all_weights(sparsity: float, seed: int) -> None:
    weights = heavy_tailed([20_000, 60_000, 35_000], seed)
    got = sparsities(measured(weights), Budget(sparsity, cap=1.0))
    # both are within one step of the curve of the threshold's place, and the curve is straight inside a step
    assert got == pytest.approx(sorted_together(weights, sparsity), abs=1 / 1024)
    assert np.average(got, weights=[w.size for w in weights]) == pytest.approx(sparsity, abs=1e-14)


def test_small_weights_are_cut_to_the_cap_and_the_rest_makes_up_for_it() -> None:
    weights = [np.full(1000, 1e-3), np.linspace(1.0, 2.0, 1000)]
    assert sparsities(measured(weights), Budget(0.6, cap=0.95)) == pytest.approx([0.95, 0.25], abs=1e-3)


def test_ties_at_the_threshold_are_shared_so_that_the_budget_is_exact() -> None:
    # half of each matrix is 1: no threshold cuts 30 % of all
    weights = [np.r_[np.ones(500), np.full(500, 2.0)], np.r_[np.ones(1500), np.full(1500, 2.0)]]
    got = sparsities(measured(weights), Budget(0.3))
    # the step between the last 1 and the first 2 is a slope in the curve
    assert got == pytest.approx([0.3, 0.3], abs=1e-3)
    assert np.average(got, weights=[1000, 3000]) == pytest.approx(0.3, abs=1e-15)


def test_an_all_zero_matrix_goes_first() -> None:
    got = sparsities(measured([np.zeros(1000), np.linspace(1.0, 2.0, 1000)]), Budget(0.3))
    assert got == pytest.approx([0.6, 0.0])


def test_the_wanda_curve_is_another_comparison() -> None:
    weights = heavy_tailed([4000, 4000], 0)
    one = measured(weights)
    layers = tuple(
        replace(layer, curves={**layer.curves, "wanda": tuple((index + 1) * v for v in layer.curves["magnitude"])})
        for index, layer in enumerate(one.layers)
    )
    scores = replace(one, layers=layers)
    magnitude, wanda = sparsities(scores, Budget(0.5)), sparsities(scores, Budget(0.5), Settings(metric="wanda"))
    assert wanda[0] > magnitude[0]
    assert global_.allocate(scores, Budget(0.5), Settings(metric="wanda")).provenance["metric"] == "wanda"


def test_other_metrics_are_refused() -> None:
    with pytest.raises(InputError, match="magnitude or wanda scores, not alpha_mid"):
        sparsities(measured([np.ones(4)]), Budget(0.5), Settings(metric="alpha-mid"))


def test_a_layer_without_the_curve_is_named() -> None:
    with pytest.raises(InputError, match=r"m0: no curve wanda \(measured: magnitude\).*--metric wanda"):
        sparsities(measured([np.ones(4)]), Budget(0.5), Settings(metric="wanda"))


@pytest.mark.parametrize("curve", [(1.0, 0.5), (-1.0, 1.0)])
def test_a_curve_that_falls_or_is_negative_is_refused(curve: tuple[float, ...]) -> None:
    layers = (LayerScore("m0", 0, (2, 2), {}, {"magnitude": curve}),)
    with pytest.raises(InputError, match="m0: the curve magnitude must be finite, non-negative and ascending"):
        sparsities(LayerScores("x", layers, 4), Budget(0.5))


def test_curves_of_different_lengths_are_refused() -> None:
    layers = tuple(LayerScore(f"m{n}", 0, (2, 2), {}, {"magnitude": (0.0,) * (n + 2)}) for n in range(2))
    with pytest.raises(InputError, match="m1: the curve magnitude has 3 points, that of m0 has 2"):
        sparsities(LayerScores("x", layers, 8), Budget(0.5))
