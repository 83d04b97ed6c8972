"""What allocators read from scores: values, pairs, parameter counts, blocks, and equation 3's linear map."""

from collections.abc import Mapping
from typing import cast

import numpy as np

from tailcut import plugins
from tailcut.allocation import Budget, LayerScore, LayerScores
from tailcut.compress.allocators._budget import Vector
from tailcut.compress.metrics import Metric
from tailcut.errors import InputError


def metric_values(layers: tuple[LayerScore, ...], name: str) -> Vector:
    """Values of a known metric [layers], signed so that larger means "prune more", and clamped."""
    metric = cast(Metric, plugins.load("tailcut.compress.metrics", name))
    return np.asarray(np.minimum(raw_values(layers, name), metric.LARGEST) * metric.SIGN, np.float64)


def raw_values(layers: tuple[LayerScore, ...], name: str) -> Vector:
    """Values of a metric as they were measured [layers]; InputError names the layer that lacks one."""
    return np.array([_value(layer, name) for layer in layers], np.float64)


def pairs_of(scores: LayerScores, layers: tuple[LayerScore, ...], name: str) -> Vector:
    """The symmetric matrix `name` between `layers` (the scores' own, in another order), float64 [layers, layers]."""
    if name not in scores.pairs:
        known = ", ".join(scores.pairs) or "none"
        metric = name.partition(".")[0]
        raise InputError(f"the scores hold no pairs {name} ({known}); run tailcut measure --metric {metric}")
    position = {layer.name: index for index, layer in enumerate(scores.layers)}
    order = [position[layer.name] for layer in layers]
    return np.asarray(scores.pairs[name], np.float64)[np.ix_(order, order)]


def _value(layer: LayerScore, name: str) -> float:
    value = layer.values.get(name)
    if value is None:
        known = ", ".join(key for key in layer.values if "." not in key) or "nothing"
        metric = name.partition(".")[0]  # magnitude.square comes with magnitude
        raise InputError(f"{layer.name}: no value of {name} (measured: {known}); run tailcut measure --metric {metric}")
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


def block_means(layers: tuple[LayerScore, ...], values: Vector) -> dict[int, float]:
    """Decoder block -> unweighted mean of its matrices' values [layers]."""
    return {block: float(values[indices].mean()) for block, indices in members(layers).items()}


def block_mean_of_each(layers: tuple[LayerScore, ...], values: Vector) -> Vector:
    """The mean of each matrix's block [layers], from values of the matrices [layers]."""
    means = block_means(layers, values)
    return np.array([means[layer.block] for layer in layers], np.float64)


def by_name(layers: tuple[LayerScore, ...], sparsities: Vector) -> dict[str, float]:
    """Sparsities [layers] -> by module name."""
    return {layer.name: float(sparsity) for layer, sparsity in zip(layers, sparsities, strict=True)}


def refuse_pattern(name: str, budget: Budget) -> None:
    """InputError if the budget asks for one N:M pattern everywhere, which an uneven allocation is not."""
    if budget.pattern is not None:
        raise InputError(
            f"pattern {budget.pattern} gives every layer the same sparsity, the {name} allocator gives each its own; "
            "use --allocator uniform with --pattern, or --sparsity without it"
        )


def at_sparsity(known: tuple[tuple[float, float], ...], sparsity: float) -> float:
    """A default that depends on the global sparsity: pairs (sparsity, value) ascending, linear between, constant outside."""
    sparsities, values = zip(*known, strict=True)
    return round(float(np.interp(sparsity, sparsities, values)), 6)


def linear_map(values: Vector, tau: float) -> Vector:
    """AlphaPruning's equation 3: values [units] -> [1 - tau, 1 + tau]; 1 everywhere if all values are equal."""
    low, span = values.min(), np.ptp(values)
    if span == 0.0:
        return np.ones_like(values)
    return np.asarray((values - low) / span * 2.0 * tau + (1.0 - tau), np.float64)
