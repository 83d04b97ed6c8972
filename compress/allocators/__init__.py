"""From scores and a budget to a plan for every matrix: pure arithmetic, one file an allocator.

Every allocator keeps: the parameter-weighted budget (exact but for float64 rounding), every sparsity in
[0, cap], the same plan for the same scores whatever their order, and JSON-ready provenance. A file whose plans
come in whole units (groups of N:M, whole matrices) says so with the constant `STEPS = True`: it meets the budget
to the nearest unit and has property tests of its own.
"""

from dataclasses import dataclass
from typing import Literal, Protocol

from tailcut.allocation import Allocation, Budget, LayerScores
from tailcut.errors import InputError

Granularity = Literal["block", "matrix", "mixed"]


@dataclass(frozen=True, slots=True)
class Settings:
    """How scores shape sparsity; an allocator that does not look at scores ignores it.

    `metric` is the score to use (spelt with - or _). `tau` is the spread: before the budget is met, sparsities
    lie in proportion to a map onto [1 - tau, 1 + tau]; None takes the allocator's default for the sparsity.
    """

    metric: str = "alpha_peak"
    tau: float | None = None
    granularity: Granularity = "block"

    def __post_init__(self) -> None:
        if self.tau is not None and not 0.0 <= self.tau <= 1.0:
            raise InputError(f"tau must be in [0, 1], got {self.tau}")
        if self.granularity not in ("block", "matrix", "mixed"):
            raise InputError(f"granularity must be block, matrix or mixed, got {self.granularity!r}")


class Allocator(Protocol):
    """What a file of this folder offers."""

    def allocate(self, scores: LayerScores, budget: Budget, settings: Settings) -> Allocation:
        """A plan for every layer of `scores` that meets `budget`; InputError if it cannot."""
