"""The interval means what it says: known ratios, A/A coverage, pairing."""

import numpy as np
import pytest

from tailcut.bench.stats import drift, mean_exp_ratio, median_ratio


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


@pytest.mark.parametrize("confidence", [0.8, 0.95])
def test_a_against_a_covers_one_about_as_often_as_stated(confidence: float) -> None:
    rng = np.random.default_rng(5)
    trials, covered, centre = 150, 0, []
    for trial in range(trials):
        ratio = median_ratio(
            noisy_blocks(rng, 1.0), noisy_blocks(rng, 1.0), confidence=confidence, seed=trial, resamples=300
        )
        covered += ratio.low <= 1.0 <= ratio.high
        centre.append(ratio.value)
    # binomial standard error of the coverage is at most sqrt(.25/150) = 4 %, and a percentile bootstrap over
    # 10 blocks is known to be a few percent off: 8 % is two standard errors
    assert abs(covered / trials - confidence) < 0.08
    assert abs(np.mean(centre) - 1) < 0.01  # noise of one median ratio is about 2 %, its mean over 150 far less


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


def test_perplexity_ratio_of_a_constant_gap_is_exact() -> None:
    dense = np.linspace(100, 200, 12)
    ratio = mean_exp_ratio(dense, dense + 10 * np.log(1.2), 10)
    assert ratio.value == pytest.approx(1.2)
    assert ratio.low == pytest.approx(1.2)


def test_drift_is_the_range_of_block_medians() -> None:
    assert drift([[1.0, 1.0], [1.5, 1.5], [1.2]]) == 1.5
