"""Hill estimates and Kolmogorov-Smirnov distances for every tail start at once.

With eigenvalues l ascending, N of them, and a tail beginning at index i with n = N - i members,

    alpha_i = 1 + n / (sum_{j>=i} ln l_j - n ln l_i)                              (Hill plus one)
    D_i     = max_{j>=i} | 1 - (l_j / l_i)^(1 - alpha_i) - (j - i) / n |          (lower step of the empirical CDF)

as AlphaPruning and WeightWatcher compute them: the threshold itself counts in n although it adds nothing to
the sum, O(1/n) off the textbook Hill estimator. Suffix sums give every alpha in O(N). The distances are
evaluated exactly for every candidate, in chunks that keep memory flat: 4096 candidates of 4096 eigenvalues
take about 0.1 s, so no coarse-to-fine search is needed.
"""

from collections.abc import Callable
from typing import Final

import numpy as np

from tailcut.compress.metrics import Matrix, Score, Spectrum, TailFit
from tailcut.compress.metrics._parts import spectrum_of
from tailcut.errors import InputError

MIN_EIGENVALUES: Final = 3
# the largest value AlphaPruning publishes for LLaMA and Llama-2 is 11.3; beyond, alpha only says "no tail"
LARGEST_ALPHA: Final = 12.0
_BINS: Final = 100
_CHUNK_ELEMENTS: Final = 1 << 19  # 4 MB of float64 a temporary: stays in cache


def score_tail(fit: Callable[[Spectrum], TailFit], matrix: Matrix) -> Score:
    """The fitted alpha, with details `xmin` and `ks`; InputError where there is no tail."""
    found = fitted(fit, spectrum_of(matrix, MIN_EIGENVALUES))
    return Score(found.alpha, {"xmin": found.xmin, "ks": found.ks})


def fitted(fit: Callable[[Spectrum], TailFit], eigenvalues: Spectrum) -> TailFit:
    """The fit, or InputError where it failed."""
    found = fit(eigenvalues)
    if found.failed:
        raise InputError(
            f"no power-law tail in its {eigenvalues.size} eigenvalues (they are tied or nearly so); measure another "
            "metric, or allocate with --allocator uniform"
        )
    return found


def checked(eigenvalues: Spectrum) -> Spectrum:
    """InputError unless there are enough eigenvalues, ascending, positive and finite."""
    values = np.asarray(eigenvalues, np.float64)
    if values.ndim != 1 or values.size < MIN_EIGENVALUES:
        raise InputError(f"a tail needs at least {MIN_EIGENVALUES} eigenvalues above rounding error, got {values.size}")
    if not (np.isfinite(values).all() and values.min() > 0.0):
        raise InputError(f"eigenvalues must be positive and finite, got {values.min():g} to {values.max():g}")
    if np.any(np.diff(values) < 0.0):
        raise InputError("eigenvalues must be in ascending order")
    return values


def hill_alphas(logs: Spectrum) -> Spectrum:
    """ln of the eigenvalues [N], ascending -> alpha for a tail beginning at each of them [N]; inf where all tie."""
    # measured from the largest, so that tied eigenvalues at the top give exactly zero below
    centred = logs - logs[-1]
    members = np.arange(logs.size, 0, -1, dtype=np.float64)
    excess = np.cumsum(centred[::-1])[::-1] - members * centred
    with np.errstate(divide="ignore"):
        return np.asarray(1.0 + members / excess, np.float64)


def ks_distances(logs: Spectrum, alphas: Spectrum, start: int, stop: int) -> Spectrum:
    """KS distance of each candidate start..stop-1 (indices), float64 [stop - start]; 1 where alpha <= 1."""
    distances = np.ones(max(0, stop - start))
    rows = max(1, _CHUNK_ELEMENTS // logs.size)
    for low in range(start, stop, rows):
        high = min(low + rows, stop)
        distances[low - start : high - start] = _chunk_distances(logs, alphas, low, high)
    distances[~(alphas[start:stop] > 1.0)] = 1.0
    return distances


def _chunk_distances(logs: Spectrum, alphas: Spectrum, low: int, high: int) -> Spectrum:
    first = np.arange(low, high)[:, None]
    # below its own threshold both terms are clipped to zero, which adds |1 - 1 - 0| = 0 to the maximum
    log_ratio = np.maximum(logs[None, low:] - logs[first], 0.0)
    step = np.maximum(np.arange(low, logs.size)[None, :] - first, 0) / (logs.size - first)
    exponent = 1.0 - alphas[first]
    # an infinite alpha means that the whole tail ties: every ratio is 1, whatever the exponent
    exponent[~(exponent > -np.inf)] = 0.0
    exponent[exponent > 0.0] = 0.0  # rounding made alpha < 1: not a candidate, the caller sets D = 1
    log_ratio *= exponent
    survival = np.exp(log_ratio, out=log_ratio)
    survival += step
    survival -= 1.0
    return np.asarray(np.abs(survival, out=survival).max(axis=1), np.float64)


def best_tail(eigenvalues: Spectrum, start: int, stop: int, *, infinite: bool = False) -> TailFit:
    """The candidate of start..stop-1 with the least KS distance; the last eigenvalue is never one.

    Without any candidate below D = 1 the fit failed: alpha 0 at index 0, as the published code leaves it.
    `infinite` keeps candidates whose tail is all ties (alpha infinite), which the published code does.
    """
    stop = min(stop, eigenvalues.size - 1)
    logs = np.log(eigenvalues)
    alphas = hill_alphas(logs)
    distances = ks_distances(logs, alphas, start, stop)
    if not infinite:
        distances[~np.isfinite(alphas[start:stop])] = 1.0
    if distances.size == 0 or distances.min() >= 1.0:
        return TailFit(0.0, float(eigenvalues[0]), 1.0, 0)
    index = start + int(np.argmin(distances))
    return TailFit(float(alphas[index]), float(eigenvalues[index]), float(distances[index - start]), index)


def histogram_peak(eigenvalues: Spectrum) -> float:
    """Left edge of the fullest of 100 bins over log10(l), as an eigenvalue; the first of equals."""
    counts, edges = np.histogram(np.log10(eigenvalues), bins=_BINS)
    return float(10.0 ** edges[int(np.argmax(counts))])
