"""The ratio of medians of a paired benchmark, with a bootstrap interval that respects the blocks.

Steps inside one ABBA block share the machine's state of that moment, so single samples are not independent. The
bootstrap therefore resamples whole blocks, dense and sparse of a block together: they are a pair. What it gives is the
standard error of the log ratio; n blocks drawn from n know one degree of freedom too few, so the error is widened by
n / (n - 1) in square, and the interval reaches Student's quantile with n - 1 degrees of freedom to either side.

`benchmarks/gate_errors.py simulate` measures its coverage beside that of other intervals (docs/benchmark.md).
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from tailcut.results import Ratio

Floats = npt.NDArray[np.float64]
RESAMPLES = 1000


def median_ratio(
    dense: Sequence[Sequence[float]],
    sparse: Sequence[Sequence[float]],
    *,
    confidence: float = 0.95,
    look: float | None = None,
    seed: int = 0,
    resamples: int = RESAMPLES,
) -> Ratio:
    """median(dense) / median(sparse) over blocks of samples [blocks, samples each], with its interval.

    look: the confidence of this interval alone, where it is one of several looks that together have `confidence`.
    """
    top, bottom = np.asarray(dense, np.float64), np.asarray(sparse, np.float64)
    value = float(np.median(top) / np.median(bottom))
    freedom = max(1, len(top) - 1)
    if len(top) == 1:  # nothing is known of the spread between blocks: samples stand in, at Student's widest quantile
        top, bottom = top.T, bottom.T
    count = len(top)
    picks = np.random.default_rng(seed).integers(0, count, (resamples, count))
    logs = np.log(_resampled_medians(top, picks)) - np.log(_resampled_medians(bottom, picks))
    error = float(logs.std()) * np.sqrt(count / max(1, count - 1))
    reach = student(look or confidence, freedom) * error
    return Ratio(value, float(value * np.exp(-reach)), float(value * np.exp(reach)), confidence)


def _resampled_medians(samples: Floats, picks: npt.NDArray[np.int64]) -> Floats:
    """samples [blocks, n], picks [resamples, blocks] -> the median of each resample, [resamples]."""
    return np.asarray(np.median(samples[picks].reshape(len(picks), -1), axis=1), np.float64)


def student(confidence: float, freedom: int) -> float:
    """The t that |T| stays below with this probability, T of Student's distribution: 12.71 for 0.95 and 1."""
    angles, inside = student_inside(freedom)
    return float(np.sqrt(freedom) * np.tan(np.interp(confidence, inside, angles)))


def student_inside(freedom: int) -> tuple[Floats, Floats]:
    """Angles a in [0, pi/2] and P(|T| < sqrt(freedom) tan a), both [points]: the density is cos(a)^(freedom - 1)."""
    angles = np.linspace(0.0, np.pi / 2, 20_001)
    density = np.cos(angles) ** (freedom - 1)
    mass = np.concatenate([[0.0], np.cumsum(density[1:] + density[:-1])])  # trapezes
    return angles, mass / mass[-1]


def mean_exp_ratio(
    dense_nll: Floats, sparse_nll: Floats, scored_per_window: int, *, confidence: float = 0.95, seed: int = 0
) -> Ratio:
    """Perplexity ratio sparse / dense from each window's summed nats [windows]; windows are resampled in pairs."""
    gap = (np.asarray(sparse_nll, np.float64) - np.asarray(dense_nll, np.float64)) / scored_per_window
    rng = np.random.default_rng(seed)
    means = gap[rng.integers(0, len(gap), (2 * RESAMPLES, len(gap)))].mean(axis=1)
    tail = 50.0 * (1.0 - confidence)
    low, high = np.exp(np.percentile(means, [tail, 100.0 - tail]))
    return Ratio(float(np.exp(gap.mean())), float(low), float(high), confidence)


def drift(blocks: Sequence[Sequence[float]]) -> float:
    """Largest over smallest block median: what time alone did to one side."""
    medians = [float(np.median(block)) for block in blocks]
    return max(medians) / min(medians)
