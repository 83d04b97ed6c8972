"""What can be said of a weight matrix before it is cut: one file a metric.

A file's name is the metric's name on the command line and in `LayerScore.values`. Module constants it must have:

    NEEDS    what it looks at, and with it which function it offers:
             "spectrum"  the matrix's significant eigenvalues             score(matrix)
             "weight"    the weights themselves                           score(matrix)
             "inputs"    the weights and the energy of their inputs       score(matrix)
             "block"     the same of all matrices of a decoder block      score_block(matrices, options)
             "pairs"     which tokens resemble each other in the inputs   features(rows), redundancy(features)
             The last three need calibration text.
    SIGN     +1 if a larger value means "prune more", -1 if it means "prune less"; never guessed by an allocator
    LARGEST  values beyond this are clamped before allocation: one matrix must not decide the scale of all
             others (infinite: never clamped)

The value of a block metric is given to every matrix of the block. Metrics that fit a power law to the upper end
of the eigenvalues also offer `fit`; lower alpha = heavier tail = better trained = pruned less (AlphaPruning,
section 3), and their files differ only in where they let the tail begin.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from math import isfinite
from typing import Final, Literal, Protocol, cast

import numpy as np
import numpy.typing as npt

from tailcut import plugins
from tailcut.bitmask import Array
from tailcut.errors import InputError

PACKAGE: Final = "tailcut.compress.metrics"
Spectrum = npt.NDArray[np.float64]
Floats = npt.NDArray[np.float32]
Needs = Literal["spectrum", "weight", "inputs", "block", "pairs"]
FROM_TEXT: Final[tuple[Needs, ...]] = ("inputs", "block", "pairs")  # these need calibration text


@dataclass(frozen=True, slots=True)
class Options:
    """What a few metrics let be chosen. `outlier`: OWL's M. `tokens`: how many tokens ALS compares."""

    outlier: float = 5.0
    tokens: int = 512

    def __post_init__(self) -> None:
        if not (isfinite(self.outlier) and self.outlier > 0.0):
            raise InputError(f"an outlier is a positive multiple of the mean, got {self.outlier}")
        if self.tokens < 2:
            raise InputError(f"redundancy compares at least 2 tokens, got {self.tokens}")


@dataclass(frozen=True, slots=True)
class Matrix:
    """One matrix as metrics see it; only what NEEDS names is there. `solve` gives any matrix's eigenvalues."""

    shape: tuple[int, int]  # [out features, in features]
    spectrum: Spectrum | None = None  # significant eigenvalues, ascending
    weight: Array | None = None  # [out, in], any float dtype
    energy: Spectrum | None = None  # [in], squared L2 norms of the inputs, up to a factor that the model's share
    solve: Callable[[Array], Spectrum] | None = None  # [m, n] -> all min(m, n) eigenvalues of the Gram, ascending


@dataclass(frozen=True, slots=True)
class Score:
    """A metric's value, further numbers that land in `values` as "<metric>.<key>", and curves by name."""

    value: float
    details: Mapping[str, float] = field(default_factory=dict)
    curves: Mapping[str, tuple[float, ...]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class TailFit:
    """A fitted tail: its exponent, where it begins (an eigenvalue and its index, ascending), its KS distance."""

    alpha: float
    xmin: float
    ks: float
    index: int

    @property
    def failed(self) -> bool:
        """No tail was found: alpha stayed 0, or tied eigenvalues made it infinite."""
        return not (isfinite(self.alpha) and self.alpha > 1.0)


class Metric(Protocol):
    """What every file of this folder offers."""

    @property
    def NEEDS(self) -> Needs: ...  # noqa: N802 - a module constant

    @property
    def SIGN(self) -> Literal[1, -1]: ...  # noqa: N802

    @property
    def LARGEST(self) -> float: ...  # noqa: N802


class MatrixMetric(Metric, Protocol):
    """NEEDS "spectrum", "weight" or "inputs"."""

    def score(self, matrix: Matrix) -> Score:
        """The value of one matrix; InputError, without its name, where it has none."""


class TailMetric(MatrixMetric, Protocol):
    """A spectrum metric that fits a power law."""

    def fit(self, eigenvalues: Spectrum) -> TailFit:
        """Positive eigenvalues, float64, ascending, at least 3 -> the fitted tail; `failed` if there is none."""


class BlockMetric(Metric, Protocol):
    """NEEDS "block"."""

    def score_block(self, matrices: Sequence[Matrix], options: Options) -> Score:
        """The value of a decoder block from all its matrices, each with `weight` and `energy`."""


class PairMetric(Metric, Protocol):
    """NEEDS "pairs": the value of a matrix is its mean redundancy with the others."""

    def features(self, rows: Floats) -> Floats:
        """Inputs of a matrix [tokens, in], the same tokens for every matrix -> what is compared; InputError if none."""

    def redundancy(self, features: Sequence[Floats]) -> Spectrum:
        """Features of n matrices -> float64 [n, n], symmetric."""


def load_metrics(names: Sequence[str]) -> dict[str, Metric]:
    """Metric names (spelt with - or _) -> the modules, under the name that scores carry; duplicates once."""
    if not names:
        raise InputError(f"no metric was named; choose from {', '.join(plugins.names(PACKAGE))}")
    return {name.replace("-", "_"): cast(Metric, plugins.load(PACKAGE, name)) for name in names}


def need_text(names: Iterable[str]) -> bool:
    """Whether calibration text decides the value of one of these metrics."""
    return any(metric.NEEDS in FROM_TEXT for metric in load_metrics(tuple(names)).values())
