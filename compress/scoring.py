"""Scores of a model's matrices, collected metric by metric as its blocks go by."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import cast

import numpy as np

from tailcut.allocation import LayerScore
from tailcut.compress.discovery import Linear
from tailcut.compress.inputs import Seen
from tailcut.compress.metrics import (
    BlockMetric,
    Floats,
    Matrix,
    MatrixMetric,
    Metric,
    Options,
    PairMetric,
    Score,
    Spectrum,
)
from tailcut.errors import InputError

Pairs = tuple[tuple[float, ...], ...]


@dataclass(slots=True)
class _Notes:
    linear: Linear
    values: dict[str, float] = field(default_factory=dict)
    curves: dict[str, tuple[float, ...]] = field(default_factory=dict)

    def take(self, metric: str, score: Score) -> None:
        self.values |= {metric: score.value} | {f"{metric}.{key}": number for key, number in score.details.items()}
        self.curves |= score.curves


class Scorer:
    """Give it every matrix in model order and every block when its matrices are through; then ask for `finish`."""

    def __init__(self, metrics: Mapping[str, Metric], options: Options) -> None:
        self._options = options
        needs = {name: metric.NEEDS for name, metric in metrics.items()}
        self._single = {n: cast(MatrixMetric, m) for n, m in metrics.items() if needs[n] not in ("block", "pairs")}
        self._block = {n: cast(BlockMetric, m) for n, m in metrics.items() if needs[n] == "block"}
        self._pairs = {n: cast(PairMetric, m) for n, m in metrics.items() if needs[n] == "pairs"}
        self._notes: list[_Notes] = []
        self._features: dict[str, list[Floats]] = {name: [] for name in (*self._pairs, *map(_of_blocks, self._pairs))}

    @property
    def keeps_weights(self) -> bool:
        """Whether a block's matrices must still hold their weights when the block ends."""
        return bool(self._block)

    def add_matrix(self, linear: Linear, matrix: Matrix) -> None:
        """One matrix; InputError names it and the metric that has no value for it."""
        notes = _Notes(linear)
        for name, metric in self._single.items():
            try:
                notes.take(name, metric.score(matrix))
            except InputError as error:
                raise InputError(f"{linear.name}: {name}: {error}") from error
        self._notes.append(notes)

    def add_block(self, linears: Sequence[Linear], matrices: Sequence[Matrix], seen: Seen | None) -> None:
        """The block whose matrices were the last to be added."""
        for name, metric in self._block.items():
            try:
                score = metric.score_block(matrices, self._options)
            except InputError as error:
                raise InputError(f"block {linears[0].block}: {name}: {error}") from error
            for notes in self._notes[-len(linears) :]:
                notes.take(name, score)
        if seen is not None:
            for name, pair_metric in self._pairs.items():
                self._add_features(name, pair_metric, linears, seen)

    def finish(self) -> tuple[tuple[LayerScore, ...], dict[str, Pairs]]:
        """All layers in the order they came, and the pairs between them."""
        pairs: dict[str, Pairs] = {}
        for name, metric in self._pairs.items():
            between = metric.redundancy(self._features[name])
            for notes, value in zip(self._notes, _means_of_others(between), strict=True):
                notes.take(name, Score(value))
            pairs[name] = _rows(between)
            pairs[_of_blocks(name)] = _rows(metric.redundancy(self._features[_of_blocks(name)]))
        layers = (LayerScore(n.linear.name, n.linear.block, n.linear.shape, n.values, n.curves) for n in self._notes)
        return tuple(layers), pairs

    def _add_features(self, name: str, metric: PairMetric, linears: Sequence[Linear], seen: Seen) -> None:
        """Linears that share an input (q, k, v) share one array, so that a model's features fit into memory."""
        block = _features(metric, seen.block, f"block {linears[0].block}: {name}")
        known: list[tuple[Floats, Floats]] = []
        for linear in linears:
            rows = seen.rows[linear.name]
            found = next((feature for other, feature in known if np.array_equal(other, rows)), None)
            if found is None:
                found = _features(metric, rows, f"{linear.name}: {name}")
                known.append((rows, found))
            self._features[name].append(found)
            self._features[_of_blocks(name)].append(block)


def _of_blocks(name: str) -> str:
    return f"{name}.block"


def _features(metric: PairMetric, rows: Floats | None, who: str) -> Floats:
    if rows is None:
        raise ValueError(f"{who}: no tokens were sampled")
    try:
        return metric.features(rows)
    except InputError as error:
        raise InputError(f"{who}: {error}") from error


def _means_of_others(between: Spectrum) -> list[float]:
    """Mean of each row without its diagonal; 0 where there is no other."""
    others = max(1, len(between) - 1)
    return [float(value) for value in (between.sum(axis=1) - np.diag(between)) / others]


def _rows(between: Spectrum) -> Pairs:
    """Seven decimals: float32 holds no more, and files stay short."""
    return tuple(tuple(row) for row in np.round(between, 7).tolist())
