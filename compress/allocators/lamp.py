"""LAMP: a global threshold on squared weights, each divided by the squares of its matrix not yet cut.

    score(u) = w_u^2 / sum_{v >= u} w_v^2        w sorted by magnitude, ascending, within its matrix

("Layer-adaptive sparsity for the magnitude-based pruning", ICLR 2021, equation 2.) The largest weight of a matrix
scores 1, a matrix's scale cancels. The scores decide only how much each matrix loses; a pruner decides which weights.

They are computed from the curve `magnitude`, P quantiles of |W|: each of the P - 1 cells between two quantiles
stands for N / (P - 1) weights with the mean square of a straight line between its ends, and is scored in its
middle. The last cell, whose few outliers a line would overrate, gets what the measured mean square of the whole matrix
leaves for it. The sparsity of a matrix is then within one step of the curve, 1/1024, of what the scores of every
single weight give (tests/compress/allocators/test_lamp.py); a matrix of fewer weights than cells is less exact.
"""

from typing import Final

import numpy as np

from tailcut.allocation import Allocation, Budget, LayerScores
from tailcut.compress.allocators import Settings
from tailcut.compress.allocators._budget import Vector, ordered, origin, plan
from tailcut.compress.allocators._curves import curves_of, one_threshold
from tailcut.compress.allocators._values import by_name, parameter_counts, raw_values, refuse_pattern

METRICS: Final = ("magnitude",)
SETTINGS: Final = ()


def allocate(scores: LayerScores, budget: Budget, settings: Settings) -> Allocation:
    """Cuts by one global threshold on LAMP scores: a squared weight over the sum of the squares in its matrix that
    are no smaller, so that the scale of a matrix does not matter and each keeps its largest weight. Needs the
    magnitude scores of every matrix; no text. LAMP, ICLR 2021. No settings. A baseline that looks only at how
    unequal the weights of a matrix are; try it with the magnitude pruner.
    """
    refuse_pattern("lamp", budget)
    layers = ordered(scores)
    curves, parameters = curves_of(layers, "magnitude"), parameter_counts(layers)
    means = raw_values(layers, "magnitude.square")
    rows = zip(curves, means, parameters, strict=True)
    roots = np.array([root_score_curve(curve, mean, count) for curve, mean, count in rows])
    sparsities = one_threshold(roots, cell_fractions(curves.shape[1] - 1), parameters, budget.sparsity, budget.cap)
    return plan(scores, by_name(layers, sparsities), origin("lamp", scores, budget, metric="magnitude"))


def lamp_scores(squares: Vector, count: float = 1.0) -> Vector:
    """Squared weights [n], ascending -> their LAMP scores [n]; 0 where all are 0.

    With `count` each entry stands for that many equal weights, and gets the score of the middle one.
    """
    above = np.cumsum(squares[::-1])[::-1] - squares
    remaining = count * above + (count + 1.0) / 2.0 * squares
    shares = np.divide(squares, remaining, out=np.zeros_like(squares), where=remaining > 0.0)
    return np.minimum(shares, 1.0)


def cell_fractions(cells: int) -> Vector:
    """Where along a matrix's sorted weights `root_score_curve` scores it: both ends and the middle of every cell."""
    return np.concatenate([[0.0], (np.arange(cells) + 0.5) / cells, [1.0]])


def root_score_curve(quantiles: Vector, mean_square: float, parameters: float) -> Vector:
    """Quantiles of |W| [points] and the mean of W^2 -> roots of the LAMP scores at `cell_fractions` [points + 1].

    Ascending. Roots, because they rise like |W| itself: nearly straight between quantiles.
    """
    low, high = quantiles[:-1], quantiles[1:]
    squares = (low * low + low * high + high * high) / 3.0  # mean square of a straight line from low to high
    squares[-1] = np.clip(mean_square * squares.size - squares[:-1].sum(), low[-1] ** 2, high[-1] ** 2)
    count = parameters / squares.size
    total = count * squares.sum()
    first = quantiles[0] / np.sqrt(total) if total > 0.0 else 0.0
    roots = np.concatenate([[first], np.sqrt(lamp_scores(squares, count)), [float(quantiles[-1] > 0.0)]])
    return np.maximum.accumulate(roots)  # rounding must not make it fall
