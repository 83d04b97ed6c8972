"""What allocators read from scores: a metric's values, parameter counts, blocks, and equation 3's linear map."""

from collections.abc import Mapping
from typing import cast

import numpy as np

from tailcut import plugins
from tailcut.allocation import LayerScore
from tailcut.compress.allocators._budget import Vector
from tailcut.compress.metrics import Metric
from tailcut.errors import InputError


def metric_values(layers: tuple[LayerScore, ...], name: str) -> Vector:
    """Values of a known metric [layers], signed so that larger means "prune more", and clamped."""
    metric = cast(Metric, plugins.load("tailcut.compress.metrics", name))
    values = np.array([_value(layer, name) for layer in layers])
    return np.asarray(np.minimum(values, metric.LARGEST) * metric.SIGN, np.float64)


def _value(layer: LayerScore, name: str) -> float:
    value = layer.values.get(name)
    if value is None:
        known = ", ".join(key for key in layer.values if "." not in key) or "nothing"
        raise InputError(f"{layer.name}: no value of {name} (measured: {known}); run tailcut measure --metric {name}")
    if not np.isfinite(value):
        raise InputError(f"{layer.name}: {name} is {value}; measure the model again")
    return value


def parameter_counts(layers: tuple[LayerScore, ...]) -> Vector:
    """Parameters of each layer, float64 [layers]."""
    return np.array([layer.parameters for layer in layers], np.float64)


def members(layers: tuple[LayerScore, ...]) -> Mapping[int, list[int]]:
    """Decoder block, ascending -> positions of its matrices in `layers`."""
    found: dict[int, list[int]] = {}
    for index, layer in enumerate(layers):
        found.setdefault(layer.block, []).append(index)
    return dict(sorted(found.items()))


def linear_map(values: Vector, tau: float) -> Vector:
    """AlphaPruning's equation 3: values [units] -> [1 - tau, 1 + tau]; 1 everywhere if all values are equal."""
    low, span = values.min(), np.ptp(values)
    if span == 0.0:
        return np.ones_like(values)
    return np.asarray((values - low) / span * 2.0 * tau + (1.0 - tau), np.float64)
