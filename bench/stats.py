"""The ratio of medians of a paired benchmark, with a bootstrap interval that respects the blocks.

Steps inside one ABBA block share the machine's state of that moment, so single samples are not independent.
The bootstrap therefore resamples whole blocks first (dense and sparse of a block together: they are a pair),
then samples within each drawn block and side. Percentile interval; a seeded generator makes it repeatable.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from tailcut.results import Ratio

Floats = npt.NDArray[np.float64]
RESAMPLES = 2000


def median_ratio(
    dense: Sequence[Sequence[float]],
    sparse: Sequence[Sequence[float]],
    *,
    confidence: float = 0.95,
    seed: int = 0,
    resamples: int = RESAMPLES,
) -> Ratio:
    """median(dense) / median(sparse) over blocks of samples [blocks, samples each], with its interval."""
    top, bottom = np.asarray(dense, np.float64), np.asarray(sparse, np.float64)
    rng = np.random.default_rng(seed)
    picks = rng.integers(0, len(top), (resamples, len(top)))
    ratios = _resampled_medians(top, picks, rng) / _resampled_medians(bottom, picks, rng)
    low, high = _interval(ratios, confidence)
    return Ratio(float(np.median(top) / np.median(bottom)), low, high, confidence)


def _resampled_medians(samples: Floats, picks: npt.NDArray[np.int64], rng: np.random.Generator) -> Floats:
    """samples [blocks, n], picks [resamples, blocks] -> the median of each resample, [resamples]."""
    within = rng.integers(0, samples.shape[1], (*picks.shape, samples.shape[1]))
    drawn = samples[picks[..., None], within]
    return np.asarray(np.median(drawn.reshape(len(picks), -1), axis=1), np.float64)


def mean_exp_ratio(
    dense_nll: Floats, sparse_nll: Floats, scored_per_window: int, *, confidence: float = 0.95, seed: int = 0
) -> Ratio:
    """Perplexity ratio sparse / dense from each window's summed nats [windows]; windows are resampled in pairs."""
    gap = (np.asarray(sparse_nll, np.float64) - np.asarray(dense_nll, np.float64)) / scored_per_window
    rng = np.random.default_rng(seed)
    means = gap[rng.integers(0, len(gap), (RESAMPLES, len(gap)))].mean(axis=1)
    low, high = _interval(np.exp(means), confidence)
    return Ratio(float(np.exp(gap.mean())), low, high, confidence)


def drift(blocks: Sequence[Sequence[float]]) -> float:
    """Largest over smallest block median: what time alone did to one side."""
    medians = [float(np.median(block)) for block in blocks]
    return max(medians) / min(medians)


def _interval(values: Floats, confidence: float) -> tuple[float, float]:
    tail = 50.0 * (1.0 - confidence)
    low, high = np.percentile(values, [tail, 100.0 - tail])
    return float(low), float(high)
