"""What a decode step costs on an engine: milliseconds of each product, by shape, pattern and precision.

`tailcut cost` measures a table on the machine that will serve; `tailcut allocate --speedup 2 --cost cost.json` spends it.
A pattern that was not measured costs what the engine would do with it: an N:M matrix runs as an unstructured one of
its sparsity where the engine accelerates those, else dense. Between two measured sparsities costs are interpolated
linearly; beyond the highest one nothing more is gained. More zeros never cost more: measured costs that say so are
noise, and neighbours are pooled until they fall (isotonic regression).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from math import isfinite
from typing import ClassVar

from tailcut.allocation import NM, Dense, Pattern, Unstructured
from tailcut.codec import FORBID_EXTRA
from tailcut.errors import InputError
from tailcut.quantised import Precision
from tailcut.results import Machine

Shape = tuple[int, int]


@dataclass(frozen=True, slots=True)
class Cost:
    """One row of activations times one matrix [out, in]: the median of `samples_ms`, milliseconds."""

    shape: Shape
    pattern: Pattern
    precision: Precision
    ms: float
    samples_ms: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        if not (isfinite(self.ms) and self.ms > 0.0):
            raise InputError(
                f"the cost of {self.shape[0]} x {self.shape[1]} {self.pattern} is {self.ms} ms; measure again"
            )


@dataclass(frozen=True, slots=True)
class CostTable:
    """Costs of one engine on one machine. `fixed_ms` is the rest of a decode step (head, attention, overhead).

    `factor` is what the entries were multiplied with so that they hold inside of a step; 1 where products were timed alone.
    """

    __pydantic_config__: ClassVar = FORBID_EXTRA
    engine: str
    machine: Machine
    threads: int
    entries: tuple[Cost, ...]
    fixed_ms: Mapping[Precision, float] = field(default_factory=dict)
    dense_step_ms: Mapping[Precision, tuple[float, ...]] = field(default_factory=dict)  # samples behind fixed_ms
    made_by: str = ""
    factor: float = 1.0
    cut_step_ms: Mapping[Precision, tuple[float, ...]] = field(default_factory=dict)  # samples behind factor

    @property
    def precisions(self) -> tuple[Precision, ...]:
        return tuple(sorted({entry.precision for entry in self.entries}))

    def curve(self, shape: Shape, precision: Precision) -> "Curve":
        """Costs of one shape; InputError if it was not measured dense."""
        mine = [entry for entry in self.entries if entry.shape == tuple(shape) and entry.precision == precision]
        dense = [entry.ms for entry in mine if isinstance(entry.pattern, Dense)]
        if not dense:
            raise InputError(
                f"the cost table of {self.engine} has no dense {shape[0]} x {shape[1]} matrix at {precision}; "
                "measure it with `tailcut cost` on a dense package of this model"
            )
        loose = sorted((e.pattern.sparsity, e.ms) for e in mine if isinstance(e.pattern, Unstructured))
        falling = _falling([ms for _, ms in loose])
        points = tuple((sparsity, ms) for (sparsity, _), ms in zip(loose, falling, strict=True))
        groups = {entry.pattern: entry.ms for entry in mine if isinstance(entry.pattern, NM)}
        return Curve(dense[0], points, groups)


@dataclass(frozen=True, slots=True)
class Curve:
    """Costs of one shape and precision: dense, by sparsity (ascending, falling), and of the N:M patterns measured."""

    dense_ms: float
    points: tuple[tuple[float, float], ...]
    groups: Mapping[NM, float]

    def ms(self, pattern: Pattern) -> float:
        """Milliseconds of a product with this pattern, by the module's rules."""
        if isinstance(pattern, Dense):
            return self.dense_ms
        if isinstance(pattern, NM) and pattern in self.groups:
            return self.groups[pattern]
        implied = [self.groups[known] for known in self.groups if isinstance(pattern, NM) and pattern.implies(known)]
        return min([self._unstructured(pattern.sparsity), *implied])

    def _unstructured(self, sparsity: float) -> float:
        """Below the lowest measured sparsity a matrix costs at least what it costs dense."""
        if not self.points or sparsity == 0.0:
            return self.dense_ms
        first, last = self.points[0], self.points[-1]
        if sparsity >= last[0]:
            return last[1]
        start = (0.0, max(self.dense_ms, first[1]))
        for (low, high_ms), (high, low_ms) in pairwise((start, *self.points)):
            if sparsity <= high:
                return high_ms + (sparsity - low) / (high - low) * (low_ms - high_ms)
        return last[1]

    def patterns(self, columns: int, cap: float, step: float) -> tuple[Pattern, ...]:
        """What an allocation may choose from: dense, multiples of `step` in the measured range, and measured N:M."""
        loose: list[Pattern] = []
        if self.points:
            least, most = self.points[0][0], min(cap, self.points[-1][0])
            count = int((most - least) / step + 1e-9)
            loose = [Unstructured(round(least + k * step, 9)) for k in range(count + 1) if least <= most]
        fitting = (known for known in self.groups if columns % known.block == 0 and known.sparsity <= cap)
        return (Dense(), *loose, *sorted(fitting, key=lambda known: (known.sparsity, known.block)))


def _falling(values: Sequence[float]) -> list[float]:
    """The closest sequence (least squares) that never rises: pool adjacent violators."""
    pools: list[tuple[float, int]] = []  # mean, length
    for value in values:
        pools.append((value, 1))
        while len(pools) > 1 and pools[-2][0] < pools[-1][0]:
            (second, m), (first, n) = pools.pop(), pools.pop()
            pools.append(((first * n + second * m) / (n + m), n + m))
    return [mean for mean, length in pools for _ in range(length)]
