"""From scores and a budget to a plan for every matrix: pure arithmetic, one file an allocator.

Every allocator keeps: the parameter-weighted budget (exact but for float64 rounding), every sparsity in
[0, cap], the same plan for the same scores whatever their order, and JSON-ready provenance. A file whose plans
come in whole units (groups of N:M, whole matrices) says so with the constant `STEPS = True`: it meets the budget
to the nearest unit and has property tests of its own.
"""

from dataclasses import dataclass, fields
from typing import Final, Literal, Protocol, cast

from tailcut import plugins
from tailcut.allocation import Allocation, Budget, LayerScores
from tailcut.cost import CostTable
from tailcut.errors import InputError
from tailcut.quantised import Precision

PACKAGE: Final = "tailcut.compress.allocators"
Granularity = Literal["block", "matrix", "mixed"]
Solver = Literal["lp", "qp"]


@dataclass(frozen=True, slots=True)
class Settings:
    """How scores shape sparsity. None is the allocator's own default; what an allocator does not read is refused.

    metric       the score to use (spelt with - or _), where there is a choice
    tau          alpha's spread: before the budget is met, sparsities lie in proportion to a map onto [1 - tau, 1 + tau]
    granularity  what competes for the budget: blocks, matrices, or blocks and then the matrices of each (mixed)
    spread       half the width, in sparsity, of the range that blocks are mapped onto (OWL's lambda, DLP's alpha)
    beta         how much more sparse each block is than the one before it (ATP)
    compat       take the unweighted mean over blocks and clip nothing, as the published codes do
    solver       lp as published, or qp (ALS)
    bounds       least and greatest sparsity of any matrix (ALS)
    step         sparsities are multiples of this, except for the one that makes the budget exact (ALS)
    group        M of N:M (nm-mixed)
    allow_dense  whether the most valued layers may lose nothing (nm-mixed)
    bit_tau      tau of the bits, where the budget has any: 0 gives every layer the same
    cost         what products cost on an engine (latency), and at which precision if the table has several
    precision
    """

    metric: str | None = None
    tau: float | None = None
    granularity: Granularity | None = None
    spread: float | None = None
    beta: float | None = None
    compat: bool = False
    solver: Solver | None = None
    bounds: tuple[float, float] | None = None
    step: float | None = None
    group: int | None = None
    allow_dense: bool = False
    bit_tau: float | None = None
    cost: CostTable | None = None
    precision: Precision | None = None

    def __post_init__(self) -> None:
        _require_inside("tau", self.tau, 1.0)
        _require_inside("spread", self.spread, 0.5)
        _require_inside("beta", self.beta, 1.0)
        _require_inside("step", self.step, 0.5)
        _require_inside("bit tau", self.bit_tau, 1.0)
        if self.group is not None and not 2 <= self.group <= 64:
            raise InputError(f"a group of N:M has 2 to 64 weights, got {self.group}")
        if self.step == 0.0:
            raise InputError("step must be above 0; leave it out for sparsities on no grid")
        if self.granularity not in (None, "block", "matrix", "mixed"):
            raise InputError(f"granularity must be block, matrix or mixed, got {self.granularity!r}")
        if self.solver not in (None, "lp", "qp"):
            raise InputError(f"solver must be lp or qp, got {self.solver!r}")
        if self.bounds is not None and not 0.0 <= self.bounds[0] <= self.bounds[1] <= 1.0:
            raise InputError(f"bounds must be two sparsities in [0, 1], the lower first, got {self.bounds}")

    @property
    def given(self) -> tuple[str, ...]:
        """Names of the settings that are not left to the allocator."""
        values = {item.name: getattr(self, item.name) for item in fields(self)}
        return tuple(name for name, value in values.items() if value is not None and value is not False)


def _require_inside(name: str, value: float | None, most: float) -> None:
    if value is not None and not 0.0 <= value <= most:
        raise InputError(f"{name} must be in [0, {most:g}], got {value}")


class Allocator(Protocol):
    """What a file of this folder offers. The docstring of `allocate`, one paragraph, is what `--list` prints."""

    @property
    def METRICS(self) -> tuple[str, ...]:  # noqa: N802 - a module constant
        """Metrics that are measured for it unless --metric names another; their curves and pairs come with them."""

    @property
    def SETTINGS(self) -> tuple[str, ...]:  # noqa: N802
        """Names of the settings that it reads."""

    def allocate(self, scores: LayerScores, budget: Budget, settings: Settings) -> Allocation:
        """A plan for every layer of `scores` that meets `budget`; InputError if it cannot."""


def load(name: str) -> Allocator:
    """One allocator by its name on the command line."""
    return cast(Allocator, plugins.load(PACKAGE, name))


def allocate(name: str, scores: LayerScores, budget: Budget, settings: Settings) -> Allocation:
    """The plan of the allocator `name`; InputError also for a setting that it would ignore."""
    from tailcut.compress.allocators import _bits  # it needs Settings, which this module must have defined by then

    require_read(name, budget, settings)
    return _bits.with_bits(load(name).allocate(scores, budget, settings), scores, budget, settings)


def require_read(name: str, budget: Budget, settings: Settings) -> None:
    """InputError unless the allocator `name`, or what adds bits to its plan, reads every setting that is given."""
    from tailcut.compress.allocators import _bits

    allocator = load(name)
    known = (*allocator.SETTINGS, *(_bits.SETTINGS if budget.bits is not None else ()))
    for setting in settings.given:
        if setting not in known:
            reads = ", ".join(known) or "no settings"
            raise InputError(f"the {name} allocator does not read {setting} (it reads {reads}); leave {setting} out")
    if budget.speedup is not None and "cost" not in known:
        raise InputError(f"the {name} allocator takes a sparsity, not a speedup; use --allocator latency")


def metrics_needed(name: str, metric: str | None) -> tuple[str, ...]:
    """What `tailcut measure` must be asked for so that the allocator `name`, given --metric, can work."""
    allocator = load(name)
    if metric is not None and "metric" in allocator.SETTINGS:
        return (metric.replace("-", "_"),)
    return allocator.METRICS
