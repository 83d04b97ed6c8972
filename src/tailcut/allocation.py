"""What to cut: scores per layer, a budget, and the plan that follows from them.

Sparsity is the fraction of zeros, in [0, 1]. N:M names what is *kept*: `NM(keep=2, block=4)` is 2:4.
The global sparsity counts the prunable linears inside the decoder blocks, weighted by parameters.
Module names (`model.layers.0.mlp.up_proj`), never positions, join these values with a model.
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from math import isfinite, lcm
from typing import Annotated, ClassVar, Literal, cast, get_args

from pydantic import Field

from tailcut.codec import FORBID_EXTRA
from tailcut.errors import InputError


@dataclass(frozen=True, slots=True)
class Dense:
    """Leave the matrix alone."""

    kind: Literal["dense"] = "dense"

    @property
    def sparsity(self) -> float:
        return 0.0

    def __str__(self) -> str:
        return "dense"


@dataclass(frozen=True, slots=True)
class Unstructured:
    """Zero this fraction of the matrix, anywhere."""

    sparsity: float
    kind: Literal["unstructured"] = "unstructured"

    def __post_init__(self) -> None:
        if not 0.0 <= self.sparsity <= 1.0:
            raise InputError(f"sparsity must be in [0, 1], got {self.sparsity}")

    def __str__(self) -> str:
        return f"{self.sparsity:.4f}"


@dataclass(frozen=True, slots=True)
class NM:
    """Keep exactly `keep` weights in every `block` consecutive inputs of a row."""

    keep: int
    block: int
    kind: Literal["nm"] = "nm"

    def __post_init__(self) -> None:
        if not 0 < self.keep <= self.block:
            raise InputError(f"N:M keeps N of M with 0 < N <= M, got {self.keep}:{self.block}")

    @property
    def sparsity(self) -> float:
        return 1.0 - self.keep / self.block

    def implies(self, other: "NM") -> bool:
        """Whether every row that obeys this pattern also obeys `other`: 2:8 and 1:4 imply 2:4, 4:8 and 3:8 do not.

        The worst row puts its kept weights where a group of `other` overlaps the groups of this one.
        """
        windows = range(0, lcm(self.block, other.block), other.block)
        overlaps = (Counter(place // self.block for place in range(at, at + other.block)) for at in windows)
        fullest = max(sum(min(self.keep, size) for size in sizes.values()) for sizes in overlaps)
        return fullest <= other.keep

    def __str__(self) -> str:
        return f"{self.keep}:{self.block}"


Pattern = Annotated[Dense | Unstructured | NM, Field(discriminator="kind")]
Bits = Literal[2, 3, 4, 8]


def parse_nm(text: str) -> NM:
    """'2:4' -> NM(keep=2, block=4)."""
    keep, colon, block = text.partition(":")
    if not (colon and keep.isdigit() and block.isdigit()):
        raise InputError(f"pattern {text!r} is not N:M with N weights kept of M, such as 2:4")
    return NM(int(keep), int(block))


def parse_bits(text: str) -> tuple[Bits, ...]:
    """'8,4' -> (8, 4); which numbers are bits, `Budget` says."""
    words = [word.strip() for word in text.split(",")]
    if not all(word.isdigit() for word in words):
        raise InputError(f"bits {text!r} are not comma-separated numbers such as 8,4,3,2")
    return cast(tuple[Bits, ...], tuple(int(word) for word in words))


@dataclass(frozen=True, slots=True)
class LayerPlan:
    """What happens to one matrix; `bits` None leaves the stored precision."""

    pattern: Pattern
    bits: Bits | None = None


@dataclass(frozen=True, slots=True)
class LayerScore:
    """One prunable matrix. `values` maps a metric's name to its value; `block` is the decoder block's index.

    `curves` maps a name to a function of the matrix's weights read off at equal steps of the fraction 0 … 1:
    `magnitude` is the quantiles of |W| at 0, 1/1024, …, 1, `wanda` those of |W| * ||x||.
    """

    name: str
    block: int
    shape: tuple[int, int]  # [out features, in features]
    values: Mapping[str, float]
    curves: Mapping[str, tuple[float, ...]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for key, curve in self.curves.items():
            if len(curve) < 2:
                raise InputError(f"{self.name}: the curve {key} has {len(curve)} points, at least 2 are needed")
            _require_finite(curve, f"{self.name}: the curve {key}")

    @property
    def parameters(self) -> int:
        return self.shape[0] * self.shape[1]


@dataclass(frozen=True, slots=True)
class LayerScores:
    """All prunable matrices of a model, in model order, and how they were measured.

    `pairs` maps a name to a symmetric matrix between the layers, rows and columns in the order of `layers`:
    `als` is how redundant the inputs of two matrices are, `als.block` the same for the inputs of their blocks.
    """

    __pydantic_config__: ClassVar = FORBID_EXTRA
    model: str  # fingerprint of the weights that were measured
    layers: tuple[LayerScore, ...]
    total_parameters: int  # whole model, tied weights once
    measured: Mapping[str, str] = field(default_factory=dict)  # tool version, device, precision, …
    pairs: Mapping[str, tuple[tuple[float, ...], ...]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if len({layer.name for layer in self.layers}) != len(self.layers):
            raise InputError("layer scores name a module twice")
        for key, rows in self.pairs.items():
            self._require_square(key, rows)

    def _require_square(self, key: str, rows: tuple[tuple[float, ...], ...]) -> None:
        size = len(self.layers)
        lengths = {len(row) for row in rows}
        if len(rows) != size or not lengths <= {size}:
            got = f"{len(rows)} rows of {'/'.join(map(str, sorted(lengths)))}"
            raise InputError(f"layer scores: the pairs {key} are {got}, expected {size} x {size} as there are layers")
        for index, row in enumerate(rows):
            _require_finite(row, f"layer scores: row {index} of the pairs {key}")
            uneven = next((other for other in range(index) if rows[other][index] != row[other]), None)
            if uneven is not None:
                raise InputError(f"layer scores: the pairs {key} are not symmetric at {uneven}, {index}; measure again")


def _require_finite(numbers: tuple[float, ...], what: str) -> None:
    wrong = next((number for number in numbers if not isfinite(number)), None)
    if wrong is not None:
        raise InputError(f"{what} holds {wrong}; measure the model again")


@dataclass(frozen=True, slots=True)
class Budget:
    """How much to cut: the global sparsity, the most any one matrix may lose, and an optional N:M pattern.

    `bits` is the mean number of bits a weight over the same matrices, of which each takes one of `bit_choices`;
    None leaves the stored precision. `speedup` asks for a decode speed over dense instead of a sparsity (latency).
    """

    sparsity: float
    cap: float = 0.99
    pattern: NM | None = None
    bits: float | None = None
    bit_choices: tuple[Bits, ...] = (8, 4, 3, 2)
    speedup: float | None = None

    def __post_init__(self) -> None:
        if not 0.0 <= self.sparsity < 1.0:
            raise InputError(f"sparsity must be in [0, 1), got {self.sparsity}; it is a fraction, not percent")
        if not 0.0 < self.cap <= 1.0:
            raise InputError(f"cap must be in (0, 1], got {self.cap}")
        if self.sparsity > self.cap:
            raise InputError(
                f"a global sparsity of {self.sparsity} cannot be met when no layer may pass the cap of {self.cap}"
            )
        self._require_bits()
        if self.speedup is not None and not (isfinite(self.speedup) and self.speedup >= 1.0):
            raise InputError(f"speedup must be at least 1 (2 is twice the dense speed), got {self.speedup}")

    def _require_bits(self) -> None:
        known = get_args(Bits)
        if not self.bit_choices or not set(self.bit_choices) <= set(known):
            raise InputError(f"bit choices must be some of {known}, got {self.bit_choices}")
        least, most = min(self.bit_choices), max(self.bit_choices)
        if self.bits is not None and not least <= self.bits <= most:
            raise InputError(f"{self.bits} bits a weight on average cannot be made of {least} to {most} bits")


@dataclass(frozen=True, slots=True)
class Allocation:
    """Module name -> plan, for every prunable matrix, and where it came from."""

    __pydantic_config__: ClassVar = FORBID_EXTRA
    plans: Mapping[str, LayerPlan]
    provenance: Mapping[str, str]  # allocator, metric, tau, granularity, scores fingerprint, …

    def sparsity(self, parameters: Mapping[str, int]) -> float:
        """Planned global sparsity, weighted by `parameters` (module name -> count)."""
        total = sum(parameters.values())
        cut = sum(plan.pattern.sparsity * parameters[name] for name, plan in self.plans.items())
        return cut / total if total else 0.0
