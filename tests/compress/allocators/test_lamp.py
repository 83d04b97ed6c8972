"""LAMP against the golden numbers of shared/spec/algorithms.md, section 9, and against scoring every weight."""

import numpy as np
import pytest

from tailcut.allocation import Budget, LayerScore, LayerScores
from tailcut.compress.allocators import Settings, lamp
from tailcut.compress.allocators._budget import Vector

FRACTIONS = np.linspace(0.0, 1.0, 1025)


def measured(weights: list[Vector]) -> LayerScores:
    layers = tuple(
        LayerScore(
            f"m{index}",
            index,
            (1, w.size),
            {"magnitude.square": float((w * w).mean())},
            {"magnitude": tuple(np.quantile(np.abs(w), FRACTIONS))},
        )
        for index, w in enumerate(weights)
    )
    return LayerScores("x", layers, 1)


def sparsities(weights: list[Vector], budget: Budget) -> list[float]:
    plans = lamp.allocate(measured(weights), budget, Settings()).plans
    return [plan.pattern.sparsity for plan in plans.values()]


def scored_one_by_one(weights: list[Vector], sparsity: float) -> list[float]:
    """Every weight's exact score, the global threshold from a sort of all of them."""
    scores = [lamp.lamp_scores(np.sort(w * w)) for w in weights]
    everything = np.sort(np.concatenate(scores))
    threshold = everything[round(sparsity * everything.size)]
    return [float((s < threshold).mean()) for s in scores]


@pytest.mark.parametrize(
    ("weights", "scores"),
    [
        ([1, 2, 3], [1 / 14, 4 / 13, 1]),
        ([10, 20, 30], [1 / 14, 4 / 13, 1]),
        ([1, 1, 1, 1], [1 / 4, 1 / 3, 1 / 2, 1]),
        ([0, 0, 5], [0, 0, 1]),
        ([0, 0], [0, 0]),
    ],
)
def test_scores_of_small_vectors(weights: list[int], scores: list[float]) -> None:
    assert lamp.lamp_scores(np.square(np.array(weights, float))) == pytest.approx(scores, abs=1e-15)


@pytest.mark.parametrize("sparsity", [0.5, 0.7, 0.9, 0.97])
@pytest.mark.parametrize("seed", range(3))
def test_the_curve_agrees_with_every_weight(sparsity: float, seed: int) -> None:
    rng = np.random.default_rng(seed)
    weights = [
        rng.normal(size=40_000),
        rng.standard_t(3, 60_000),
        rng.laplace(size=20_000),
        rng.uniform(-1, 1, 30_000),
    ]
    got = sparsities(weights, Budget(sparsity, cap=1.0))
    # one step of the curve
    assert got == pytest.approx(scored_one_by_one(weights, sparsity), abs=1 / 1024)


def test_the_scale_of_a_matrix_does_not_matter() -> None:
    rng = np.random.default_rng(0)
    weights = [rng.normal(size=3000), rng.standard_t(4, 5000)]
    one = sparsities(weights, Budget(0.7))
    # float64 sums of squares round differently at another scale
    assert sparsities([1000.0 * weights[0], weights[1]], Budget(0.7)) == pytest.approx(one, abs=1e-9)


def test_unequal_weights_leave_more_to_cut() -> None:
    rng = np.random.default_rng(1)
    even, heavy = sparsities([rng.uniform(1.0, 1.1, 5000), rng.standard_t(2, 5000)], Budget(0.6))
    assert heavy > even


def test_an_all_zero_matrix_goes_first_up_to_the_cap() -> None:
    rng = np.random.default_rng(2)
    zero, other = sparsities([np.zeros(1000), rng.normal(size=1000)], Budget(0.6, cap=0.9))
    assert zero == 0.9
    assert other == pytest.approx(0.3)
