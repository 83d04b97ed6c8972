"""How far the spectrum is from that of the same weights in random places.

Both spectra, ascending, are taken as probabilities l / sum(l) over ranks; the value is the square root of their
Jensen-Shannon divergence in nats, in [0, sqrt(ln 2)] (WeightWatcher's `rand_distance`). Far from random = learnt
more = pruned less, hence SIGN -1; the published code never turns a metric's direction around and would prune it more.

The weights are sorted before they are shuffled with a fixed seed, so that the value depends on nothing but the
matrix, and neither scaling nor transposing it changes it. Costs a second set of eigenvalues, which is cached like
the first.
"""

import math
from typing import Final, Literal

import numpy as np

from tailcut.bitmask import Array
from tailcut.compress.metrics import Matrix, Needs, Score, Spectrum
from tailcut.compress.metrics._parts import weight_of
from tailcut.errors import InputError

NEEDS: Final[Needs] = "weight"
SIGN: Final[Literal[1, -1]] = -1
LARGEST: Final = math.inf
_SEED: Final = 0


def score(matrix: Matrix) -> Score:
    """The distance of `weight`'s spectrum from its shuffled self's; InputError for a zero matrix."""
    weight = weight_of(matrix)
    if matrix.solve is None:
        raise ValueError("rand_distance needs `solve`")
    return Score(jensen_shannon(_shares(matrix.solve(weight)), _shares(matrix.solve(shuffled(weight)))))


def shuffled(weight: Array) -> Array:
    """The same weights [out, in] in random places of a [min, max] matrix, whatever order they come in."""
    values = np.sort(weight.astype(np.float32), axis=None)
    np.random.default_rng(_SEED).shuffle(values)
    return values.reshape(sorted(weight.shape))


def jensen_shannon(p: Spectrum, q: Spectrum) -> float:
    """Square root of the Jensen-Shannon divergence (nats) of two probability vectors of one length."""
    middle = (p + q) / 2.0
    return math.sqrt(max(0.0, (_relative(p, middle) + _relative(q, middle)) / 2.0))


def _relative(p: Spectrum, q: Spectrum) -> float:
    """sum p ln(p / q), where p = 0 counts nothing."""
    present = p > 0.0
    return float((p[present] * np.log(p[present] / q[present])).sum())


def _shares(eigenvalues: Spectrum) -> Spectrum:
    """l / sum(l), rounding error below zero cut off."""
    values = np.maximum(eigenvalues, 0.0)
    total = float(values.sum())
    if not total > 0.0:
        raise InputError("all weights are zero, so nothing can be told from random; it cannot be measured")
    return np.asarray(values / total, np.float64)
