"""The interval means what it says: known ratios, A/A coverage with few and many blocks, pairing, quantiles."""

import numpy as np
import pytest

from tailcut.bench.checks._intervals import median
from tailcut.bench.stats import drift, mean_exp_ratio, median_ratio, student


def noisy_blocks(rng: np.random.Generator, scale: float, blocks: int = 10, samples: int = 16) -> np.ndarray:
    """Lognormal noise: 3 % between blocks, 3 % within."""
    return scale * np.exp(rng.normal(0, 0.03, (blocks, 1)) + rng.normal(0, 0.03, (blocks, samples)))


def test_a_constant_pair_has_a_point_interval() -> None:
    ratio = median_ratio([[4.0] * 3] * 5, [[2.0] * 3] * 5)
    assert (ratio.value, ratio.low, ratio.high) == (2.0, pytest.approx(2.0), pytest.approx(2.0))


def test_the_same_seed_gives_the_same_interval() -> None:
    rng = np.random.default_rng(1)
    dense, sparse = noisy_blocks(rng, 2.0), noisy_blocks(rng, 1.0)
    assert median_ratio(dense, sparse, seed=3) == median_ratio(dense, sparse, seed=3)


@pytest.mark.parametrize(("confidence", "blocks"), [(0.8, 10), (0.95, 10), (0.95, 4), (0.95, 3)])
def test_a_against_a_covers_one_at_least_as_often_as_stated(confidence: float, blocks: int) -> None:
    rng = np.random.default_rng(5)
    trials, covered, centre = 150, 0, []
    for trial in range(trials):
        pair = noisy_blocks(rng, 1.0, blocks), noisy_blocks(rng, 1.0, blocks)
        ratio = median_ratio(*pair, confidence=confidence, seed=trial, resamples=300)
        covered += ratio.low <= 1.0 <= ratio.high
        centre.append(ratio.value)
    # two binomial standard errors below what is stated
    assert covered / trials > confidence - 2 * np.sqrt(confidence * (1 - confidence) / trials)
    assert abs(np.mean(centre) - 1) < 0.01  # noise of one median ratio is about 2 %, its mean over 150 far less


@pytest.mark.parametrize("blocks", [4, 10])
@pytest.mark.parametrize("within", [0.005, 0.1])
def test_a_median_of_one_side_covers_the_truth_as_often_as_stated(blocks: int, within: float) -> None:
    """Noise between blocks, or within them, as the larger part."""
    rng = np.random.default_rng(blocks)
    trials, covered = 200, 0
    for _ in range(trials):
        times = np.exp(rng.normal(0, 0.05, (blocks, 1)) + rng.normal(0, within, (blocks, 16)))
        found = median(tuple(map(tuple, times)), 0.95)
        assert found is not None
        covered += found.low <= 1.0 <= found.high
    # two binomial standard errors below what is stated
    assert covered / trials > 0.95 - 2 * np.sqrt(0.95 * 0.05 / trials)


def test_a_true_speedup_is_inside() -> None:
    rng = np.random.default_rng(2)
    ratio = median_ratio(noisy_blocks(rng, 3.0), noisy_blocks(rng, 2.0))
    assert ratio.low < 1.5 < ratio.high
    assert ratio.high - ratio.low < 0.2


def test_noise_that_both_sides_share_cancels() -> None:
    """Blocks are drawn in pairs, so a slow moment that hits dense and sparse alike does not widen the interval."""
    rng = np.random.default_rng(0)
    shared = np.exp(rng.normal(0, 0.3, (10, 1)))
    dense = 2.0 * shared * np.exp(rng.normal(0, 0.001, (10, 8)))
    sparse = 1.0 * shared * np.exp(rng.normal(0, 0.001, (10, 8)))
    ratio = median_ratio(dense, sparse)
    assert ratio.high - ratio.low < 0.05


def test_one_look_of_many_is_wider_and_still_states_the_whole_confidence() -> None:
    rng = np.random.default_rng(3)
    pair = noisy_blocks(rng, 2.0), noisy_blocks(rng, 1.0)
    alone, one_of_many = median_ratio(*pair), median_ratio(*pair, look=0.99)
    assert one_of_many.low < alone.low < alone.high < one_of_many.high
    assert one_of_many.confidence == 0.95


def test_one_block_gives_an_interval_and_a_wide_one() -> None:
    rng = np.random.default_rng(4)
    ratio = median_ratio(noisy_blocks(rng, 2.0, 1), noisy_blocks(rng, 1.0, 1))
    assert ratio.low < 0.95 * ratio.value < 1.05 * ratio.value < ratio.high  # 3 % noise a step, 16 steps a side


@pytest.mark.parametrize(
    ("confidence", "freedom", "value"),
    # tables of Student's distribution, two-sided
    [(0.95, 1, 12.706), (0.95, 3, 3.182), (0.99, 7, 3.499), (0.999, 3, 12.924), (0.95, 1000, 1.962)],
)
def test_students_quantiles_are_those_of_the_tables(confidence: float, freedom: int, value: float) -> None:
    assert student(confidence, freedom) == pytest.approx(value, abs=6e-4)  # the tables' rounding


def test_perplexity_ratio_of_a_constant_gap_is_exact() -> None:
    dense = np.linspace(100, 200, 12)
    ratio = mean_exp_ratio(dense, dense + 10 * np.log(1.2), 10)
    assert ratio.value == pytest.approx(1.2)
    assert ratio.low == pytest.approx(1.2)


def test_drift_is_the_range_of_block_medians() -> None:
    assert drift([[1.0, 1.0], [1.5, 1.5], [1.2]]) == 1.5
