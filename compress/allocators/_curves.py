"""One threshold over all matrices, read off curves of their weights' scores.

A curve holds a matrix's scores (such as |W|) in ascending order at fixed fractions of its weights. The fraction
of a matrix that a threshold t cuts is where its curve passes t, interpolated linearly; all of a tied stretch is
cut as soon as t reaches it. The threshold is found by bisection down to neighbouring floating-point numbers; what
ties leave over between the two is shared in proportion, so that the budget is met exactly.
"""

import numpy as np

from tailcut.allocation import LayerScore
from tailcut.compress.allocators._budget import Vector
from tailcut.compress.allocators._fill import between
from tailcut.errors import InputError

_HALVINGS = 200  # of a float64 range: enough to separate neighbours unless the threshold is all but zero


def curves_of(layers: tuple[LayerScore, ...], name: str) -> Vector:
    """The curve `name` of each layer, float64 [layers, points], ascending and non-negative; InputError names a layer."""
    rows = [_checked(layer, name) for layer in layers]
    odd = next((index for index, row in enumerate(rows) if row.size != rows[0].size), None)
    if odd is not None:
        raise InputError(
            f"{layers[odd].name}: the curve {name} has {rows[odd].size} points, that of {layers[0].name} has "
            f"{rows[0].size}; measure the model again"
        )
    return np.array(rows)


def _checked(layer: LayerScore, name: str) -> Vector:
    if name not in layer.curves:
        known = ", ".join(layer.curves) or "nothing"
        raise InputError(f"{layer.name}: no curve {name} (measured: {known}); run tailcut measure --metric {name}")
    curve = np.asarray(layer.curves[name], np.float64)
    if not (np.isfinite(curve).all() and curve[0] >= 0.0 and np.all(np.diff(curve) >= 0.0)):
        raise InputError(f"{layer.name}: the curve {name} must be finite, non-negative and ascending; measure it again")
    return curve


def one_threshold(curves: Vector, fractions: Vector, parameters: Vector, sparsity: float, cap: float) -> Vector:
    """Sparsity of each layer [layers] when one threshold cuts all, none passes `cap` and the budget is met.

    Curves [layers, points] of scores at the given fractions [points], which go from 0 to 1.
    """

    def cut(threshold: float) -> Vector:
        return np.minimum(_fraction_below(curves, fractions, threshold), cap)

    low, high = -1.0, float(curves.max())  # nothing is cut, and everything up to the cap
    for _ in range(_HALVINGS):
        middle = low + (high - low) / 2.0
        if not low < middle < high:
            break
        if np.average(cut(middle), weights=parameters) > sparsity:
            high = middle
        else:
            low = middle
    values = np.array([cut(low), cut(high)])
    return between(values, values @ parameters / parameters.sum(), sparsity)


def _fraction_below(curves: Vector, fractions: Vector, threshold: float) -> Vector:
    """Fraction of each layer's weights with a score of at most `threshold` [layers]."""
    rows, last = np.arange(len(curves)), curves.shape[1] - 1
    reached = (curves <= threshold).sum(axis=1)
    lower, upper = np.maximum(reached - 1, 0), np.minimum(reached, last)
    start, stop = curves[rows, lower], curves[rows, upper]
    rise = np.where(stop > start, stop - start, 1.0)
    share = np.clip((threshold - start) / rise, 0.0, 1.0)
    return np.asarray(fractions[lower] + share * (fractions[upper] - fractions[lower]), np.float64)
